//! The container's streams, the terminal, and signals.

use std::io::{IsTerminal, Read, Write};
use std::sync::Arc;

use anyhow::Context;
use kata_cc_kbs_protocol::base64_standard;
use kata_cc_sandbox::{Output as Stream, Sandbox};
use nix::sys::termios;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::output;

/// Signals that end a run: so many of them end the sandbox when its program does not.
const PATIENCE: usize = 3;

/// Signals of ours.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    resized: Signal,
}

impl Signals {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            resized: signal(SignalKind::window_change())?,
        })
    }

    /// The next signal that asks for the end.
    pub(super) async fn end(&mut self) -> i32 {
        loop {
            if let Some(number) = self.next().await {
                return number;
            }
        }
    }

    /// The next signal that asks for the end; none when the terminal has another size.
    async fn next(&mut self) -> Option<i32> {
        Some(tokio::select! {
            _ = self.resized.recv() => return None,
            _ = self.interrupt.recv() => SignalKind::interrupt().as_raw_value(),
            _ = self.terminate.recv() => SignalKind::terminate().as_raw_value(),
            _ = self.hangup.recv() => SignalKind::hangup().as_raw_value(),
        })
    }
}

/// Rows and columns of our terminal.
pub(super) fn terminal_size() -> Option<(u16, u16)> {
    terminal_size::terminal_size().map(|(columns, rows)| (rows.0, columns.0))
}

/// A terminal in raw mode; as it was when dropped.
struct Raw(termios::Termios);

impl Raw {
    fn enter() -> anyhow::Result<Option<Self>> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = termios::tcgetattr(&stdin).context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&stdin, termios::SetArg::TCSANOW, &raw)
            .context("cannot change the terminal's settings")?;
        Ok(Some(Self(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(std::io::stdin(), termios::SetArg::TCSANOW, &self.0);
    }
}

/// Carry streams and signals until the container ends; gives its exit code.
pub(super) async fn attach(
    sandbox: &Arc<Sandbox>,
    container: &str,
    tty: bool,
    interactive: bool,
    json: bool,
    signals: &mut Signals,
) -> anyhow::Result<u8> {
    let raw = if tty && interactive { Raw::enter()? } else { None };
    let input = tokio::spawn(feed(Arc::clone(sandbox), container.to_owned(), interactive));
    let out = carry(sandbox, container, Stream::Stdout, json);
    let err = async { if tty { Ok(()) } else { carry(sandbox, container, Stream::Stderr, json).await } };
    let ended = async {
        // An output that nobody takes any more (`| head`) ends the run; it does not wait for the program.
        let exit = async { Ok(sandbox.wait(container, "").await?) };
        let ((), (), code) = tokio::try_join!(out, err, exit)?;
        Ok::<u32, anyhow::Error>(code)
    };
    tokio::pin!(ended);
    let mut asked = 0;
    let code = loop {
        tokio::select! {
            code = &mut ended => break code,
            number = signals.next() => {
                let Some(number) = number else {
                    if let (true, Some((rows, columns))) = (tty, terminal_size()) {
                        let _ = sandbox.resize(container, "", rows.into(), columns.into()).await;
                    }
                    continue;
                };
                asked += 1;
                if asked >= PATIENCE {
                    break Ok(u32::try_from(128 + number).unwrap_or(255));
                }
                let _ = sandbox.signal(container, "", u32::try_from(number).unwrap_or(15)).await;
            }
        }
    };
    input.abort();
    drop(raw);
    Ok(u8::try_from(code?).unwrap_or(255))
}

/// Standard input to the container, read on a thread that ends with the process: a read cannot be called off.
async fn feed(sandbox: Arc<Sandbox>, container: String, interactive: bool) {
    if interactive {
        let (give, mut take) = tokio::sync::mpsc::channel::<Vec<u8>>(4);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 32 << 10];
            let mut stdin = std::io::stdin().lock();
            while let Ok(read @ 1..) = stdin.read(&mut buffer) {
                if give.blocking_send(buffer[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        while let Some(data) = take.recv().await {
            let mut rest = data.as_slice();
            while !rest.is_empty() {
                match sandbox.write_stdin(&container, "", rest).await {
                    Ok(taken @ 1..) => rest = rest.get(taken..).unwrap_or_default(),
                    // The program reads no more, or the guest's policy does not let the host write to it.
                    Err(error) if error.to_string().contains("blocked by policy") => {
                        crate::output::note(&format!("kata-cc: standard input is not passed on: {error}"));
                        let _ = sandbox.close_stdin(&container, "").await;
                        return;
                    }
                    _ => return,
                }
            }
        }
    }
    let _ = sandbox.close_stdin(&container, "").await;
}

/// An output of the container to ours.
async fn carry(sandbox: &Arc<Sandbox>, container: &str, stream: Stream, json: bool) -> anyhow::Result<()> {
    loop {
        let data = sandbox.read(container, "", stream).await?;
        if data.is_empty() {
            return Ok(());
        }
        write(&data, stream, json).context("the container's output cannot be written")?;
    }
}

fn write(data: &[u8], stream: Stream, json: bool) -> std::io::Result<()> {
    if !json {
        return match stream {
            Stream::Stdout => std::io::stdout().write_all(data).and_then(|()| std::io::stdout().flush()),
            Stream::Stderr => std::io::stderr().write_all(data),
        };
    }
    let name = if stream == Stream::Stdout { "stdout" } else { "stderr" };
    let line = match std::str::from_utf8(data) {
        Ok(text) => json!({"event": "output", "stream": name, "text": text}),
        Err(_) => json!({"event": "output", "stream": name, "base64": base64_standard(data)}),
    };
    output::write(&(output::inert(&line.to_string()) + "\n"))
}
