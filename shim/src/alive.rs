//! Waiting for the guest without hanging on one that has died.

use std::future::Future;
use std::time::Duration;

use crate::guest::{GuestError, Pod};

/// How long a call that should be answered at once may take (an emulated machine is slow).
const LIMIT: Duration = Duration::from_secs(60);

/// The call's result, or the reason why the sandbox ended meanwhile.
pub(crate) async fn alive<T>(
    pod: &dyn Pod,
    call: impl Future<Output = Result<T, GuestError>>,
) -> Result<T, GuestError> {
    tokio::select! {
        biased;
        result = call => result,
        reason = pod.ended() => Err(GuestError::Unavailable(reason)),
    }
}

/// The same for a call that must not take long.
pub(crate) async fn prompt<T>(
    pod: &dyn Pod,
    call: impl Future<Output = Result<T, GuestError>>,
) -> Result<T, GuestError> {
    match tokio::time::timeout(LIMIT, alive(pod, call)).await {
        Ok(result) => result,
        Err(_) => {
            Err(GuestError::Unavailable(format!("the guest did not answer within {} s", LIMIT.as_secs())))
        }
    }
}
