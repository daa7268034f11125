//! `kata-cc-kbs-pkcs11`: the process in which a vendor's PKCS#11 module runs. See the library for the messages.
//!
//! Started by `kbs`, never by hand. It ends when its standard input ends, also while the module hangs in a call, so it never
//! outlives the broker.
//!
//! Exit codes: 0 when the broker is gone, 1 when a message could not be read or written, 2 when it was not started by a broker.

#![forbid(unsafe_code)]

mod token;

use std::fs::File;
use std::io::{BufReader, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::mpsc;

use kata_cc_kbs_pkcs11::{ErrorKind, HelperError, Operation, Reply, Request, decode, encode, read_line};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{dup, dup2_stdout};
use zeroize::Zeroizing;

use crate::token::Token;

fn main() -> ExitCode {
    if std::env::args_os().len() > 1 || std::io::stdin().is_terminal() {
        eprintln!(
            "kata-cc-kbs-pkcs11 is started by kbs, which talks to it over its standard input and output"
        );
        return ExitCode::from(2);
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kata-cc-kbs-pkcs11: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    // Keys pass through this memory: neither a core dump nor a debugger of the same user gets at it.
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    prctl::set_dumpable(false)?;
    // A module that prints must not write into the answers.
    let mut out = File::from(dup(std::io::stdout())?);
    dup2_stdout(std::io::stderr())?;

    let lines = requests();
    let mut token = None;
    while let Ok(line) = lines.recv() {
        let (id, result) = match decode::<Request>(&line) {
            Ok(request) => (request.id, answer(&mut token, request.operation)),
            Err(error) => (0, Err(HelperError::new(ErrorKind::Request, error.to_string()))),
        };
        out.write_all(&encode(&Reply { id, result })?)?;
        out.flush()?;
    }
    Ok(())
}

/// Reads requests in a thread of its own, which ends the process with the stream.
fn requests() -> mpsc::Receiver<Zeroizing<Vec<u8>>> {
    let (send, receive) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut reader = BufReader::new(std::io::stdin());
        let code = loop {
            match read_line(&mut reader) {
                Ok(Some(line)) => {
                    if send.send(line).is_err() {
                        break 0;
                    }
                }
                Ok(None) => break 0,
                Err(error) => {
                    eprintln!("kata-cc-kbs-pkcs11: {error}");
                    break 1;
                }
            }
        };
        #[allow(
            clippy::exit,
            reason = "the main thread may hang in the module, and nobody is left to answer to"
        )]
        std::process::exit(code);
    });
    receive
}

fn answer(
    token: &mut Option<Token>,
    operation: Operation,
) -> Result<kata_cc_kbs_pkcs11::Answer, HelperError> {
    match (token.as_mut(), operation) {
        (None, Operation::Open { module, token: choice, pin }) => {
            let opened = Token::open(&module, &choice, &pin)?;
            let answer = opened.describe();
            *token = Some(opened);
            Ok(answer)
        }
        (None, _) => Err(HelperError::new(ErrorKind::Request, "the token is not open")),
        (Some(_), Operation::Open { .. }) => {
            Err(HelperError::new(ErrorKind::Request, "the token is open already"))
        }
        (Some(token), operation) => token.run(operation),
    }
}
