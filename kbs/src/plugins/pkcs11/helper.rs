//! The helper process: started when it is needed, asked one thing at a time, ended when it misbehaves.
//!
//! A helper that dies, hangs or answers nonsense is killed, and the next call starts another; from the second failure in a row
//! on, after a pause that doubles from 100 ms to 30 s. A refused PIN is never tried again: tokens lock after a few wrong ones.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use kata_cc_kbs_pkcs11::{
    Answer, ErrorKind, HelperError, MAX_LINE, MessageError, Operation, Reply, Request, Secret, TokenChoice,
    decode, encode,
};
use thiserror::Error;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::{info, warn};
use zeroize::Zeroizing;

/// First pause after a start that failed.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Why the token did not do it.
#[derive(Debug, Error)]
pub(crate) enum TokenError {
    /// The helper or the token says no.
    #[error(transparent)]
    Refused(#[from] HelperError),
    /// The helper cannot be started.
    #[error("helper {program} cannot be started: {source}")]
    Start {
        /// Which program.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The helper died during the call.
    #[error("the helper ended during the call ({0}); the next call starts another")]
    Died(String),
    /// The helper did not answer in time and was killed.
    #[error("the token did not answer in {0:?}; the helper was ended, the next call starts another")]
    Timeout(Duration),
    /// What the helper answered is no answer.
    #[error("the helper answered nonsense and was ended: {0}")]
    Nonsense(String),
    /// Starting failed a moment ago.
    #[error("the helper is not running and is not started again before {0:?} have passed; last failure: {1}")]
    Pause(Duration, String),
    /// The PIN was refused before.
    #[error(
        "the token refused the PIN, and it is not tried again, for that could lock the token: {0}. Correct the PIN and restart the broker"
    )]
    Locked(String),
}

/// How the helper is started and what it opens.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) module: String,
    pub(crate) token: TokenChoice,
    pub(crate) pin: Secret,
    /// Time of one operation, and of starting.
    pub(crate) time: Duration,
}

#[derive(Debug)]
struct Running {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    next: u64,
}

#[derive(Debug, Default)]
struct State {
    running: Option<Running>,
    /// Failures since the token last answered.
    failures: u32,
    /// No start before this, and why.
    pause: Option<(Instant, String)>,
    locked: Option<String>,
}

impl State {
    /// The first failure is followed by a start at once: the helper may just have been killed. Then the pauses begin.
    fn failed(&mut self, error: &TokenError) {
        self.failures = self.failures.saturating_add(1);
        let pause = match self.failures {
            1 => Duration::ZERO,
            more => FIRST_PAUSE.saturating_mul(1 << (more - 2).min(16)).min(LONGEST_PAUSE),
        };
        self.pause = Some((Instant::now() + pause, error.to_string()));
    }
}

/// A token behind a helper.
#[derive(Debug)]
pub(crate) struct Token {
    launch: Launch,
    state: Mutex<State>,
}

impl Token {
    /// A token that is opened by the first call.
    pub(crate) fn closed(launch: Launch) -> Self {
        Self { launch, state: Mutex::default() }
    }

    /// Starts the helper and opens the token.
    pub(crate) async fn open(&self) -> Result<(), TokenError> {
        self.ready(&mut *self.state.lock().await).await.map(drop)
    }

    /// Process of the helper.
    #[cfg(test)]
    pub(crate) async fn pid(&self) -> Option<u32> {
        self.state.lock().await.running.as_ref().and_then(|running| running.child.id())
    }

    /// Asks one thing.
    pub(crate) async fn ask(&self, operation: Operation) -> Result<Answer, TokenError> {
        let mut state = self.state.lock().await;
        let died_before = self.ready(&mut state).await?;
        // While this call is running, `running` is taken out: when the call is dropped half way (the plugin's timeout), the
        // helper goes with it, for its next line would answer a question that nobody asks any more.
        let Some(mut running) = state.running.take() else {
            return Err(TokenError::Died("it was not started".to_owned()));
        };
        if died_before {
            info!("the PKCS#11 helper was started again");
        }
        let result = running.ask(operation, self.launch.time).await;
        match &result {
            Ok(_) | Err(TokenError::Refused(_)) => {
                state.running = Some(running);
                state.failures = 0;
            }
            Err(error) => {
                warn!(%error, "PKCS#11 helper");
                state.failed(error);
                running.end().await;
            }
        }
        result
    }

    /// Makes sure that a helper runs. True when an earlier one had ended by itself.
    async fn ready(&self, state: &mut State) -> Result<bool, TokenError> {
        if let Some(why) = &state.locked {
            return Err(TokenError::Locked(why.clone()));
        }
        let mut died = false;
        if let Some(mut running) = state.running.take() {
            match running.child.try_wait() {
                Ok(None) => {
                    state.running = Some(running);
                    return Ok(false);
                }
                ended => {
                    warn!(?ended, "the PKCS#11 helper ended by itself");
                    running.end().await;
                    died = true;
                }
            }
        }
        if let Some((until, why)) = &state.pause {
            let left = until.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                return Err(TokenError::Pause(left, why.clone()));
            }
        }
        match self.start().await {
            Ok(running) => {
                state.running = Some(running);
                state.pause = None;
                Ok(died)
            }
            Err(error) => {
                state.failed(&error);
                if let TokenError::Refused(HelperError { kind: ErrorKind::Pin, detail }) = &error {
                    state.locked = Some(detail.clone());
                }
                Err(error)
            }
        }
    }

    async fn start(&self) -> Result<Running, TokenError> {
        let launch = &self.launch;
        let mut command = Command::new(&launch.program);
        command.env_clear().envs(["PATH", "LANG"].iter().filter_map(|n| Some((n, std::env::var_os(n)?))));
        command.envs(&launch.environment).current_dir("/");
        // What a module prints may be secret.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let failed = |source| TokenError::Start { program: launch.program.clone(), source };
        let mut child = command.spawn().map_err(failed)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(std::io::ErrorKind::BrokenPipe.into()));
        };
        let mut running = Running { child, input, output: BufReader::new(output), next: 1 };
        let open = Operation::Open {
            module: launch.module.clone(),
            token: launch.token.clone(),
            pin: launch.pin.clone(),
        };
        match running.ask(open, launch.time).await {
            Ok(Answer::Opened { label, model, serial }) => {
                info!(token = label, model, serial, module = launch.module, "token is open");
                Ok(running)
            }
            Ok(_) => {
                running.end().await;
                Err(TokenError::Nonsense("an answer of another kind".to_owned()))
            }
            Err(error) => {
                running.end().await;
                Err(error)
            }
        }
    }
}

impl Running {
    async fn ask(&mut self, operation: Operation, time: Duration) -> Result<Answer, TokenError> {
        let id = self.next;
        self.next += 1;
        let line = encode(&Request { id, operation }).map_err(|e| {
            let why = format!("request to the helper: {e}");
            TokenError::Refused(HelperError::new(ErrorKind::Request, why))
        })?;
        match tokio::time::timeout(time, self.exchange(&line)).await {
            Err(_) => Err(TokenError::Timeout(time)),
            Ok(Err(error)) => Err(TokenError::Died(error.to_string())),
            Ok(Ok(None)) => Err(TokenError::Died("its output ended".to_owned())),
            Ok(Ok(Some(line))) => {
                let reply: Reply =
                    decode(&line).map_err(|e: MessageError| TokenError::Nonsense(e.to_string()))?;
                if reply.id != id {
                    return Err(TokenError::Nonsense(format!("reply {} to request {id}", reply.id)));
                }
                Ok(reply.result?)
            }
        }
    }

    async fn exchange(&mut self, line: &[u8]) -> std::io::Result<Option<Zeroizing<Vec<u8>>>> {
        self.input.write_all(line).await?;
        self.input.flush().await?;
        let mut reply = Zeroizing::new(Vec::with_capacity(MAX_LINE + 1));
        let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
        (&mut self.output).take(limit).read_until(b'\n', &mut reply).await?;
        Ok((reply.pop() == Some(b'\n')).then_some(reply))
    }

    async fn end(mut self) {
        // Fails when it has ended already.
        let _ = self.child.kill().await;
    }
}
