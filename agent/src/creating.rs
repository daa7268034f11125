//! Containers that are being created, so that a creation can be given up.
//!
//! A pull may take minutes, and whoever asked for the container may not wait that long. RemoveContainer of its id then ends the creation.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Ids of containers that are being created, with what tells their creation to end.
#[derive(Debug, Default)]
pub(crate) struct Creations(Mutex<HashMap<String, watch::Sender<bool>>>);

/// A creation that goes on.
pub(crate) struct Creation<'c> {
    all: &'c Creations,
    id: String,
    given_up: watch::Receiver<bool>,
}

impl Creations {
    fn all(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<bool>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins one; `None` while another of that id goes on.
    pub(crate) fn begin(&self, id: &str) -> Option<Creation<'_>> {
        let mut all = self.all();
        if all.contains_key(id) {
            return None;
        }
        let (tell, given_up) = watch::channel(false);
        all.insert(id.to_owned(), tell);
        Some(Creation { all: self, id: id.to_owned(), given_up })
    }

    /// Tells the creation of `id` to end, if one goes on.
    pub(crate) fn give_up(&self, id: &str) {
        if let Some(tell) = self.all().get(id) {
            tell.send_replace(true);
        }
    }

    /// Tells all of them.
    pub(crate) fn give_up_all(&self) {
        for tell in self.all().values() {
            tell.send_replace(true);
        }
    }
}

impl Creation<'_> {
    /// What is told when it is to end.
    pub(crate) fn given_up(&self) -> GivenUp {
        GivenUp(self.given_up.clone())
    }
}

impl Drop for Creation<'_> {
    fn drop(&mut self) {
        self.all.all().remove(&self.id);
    }
}

/// Whether a creation is to end.
#[derive(Clone, Debug)]
pub(crate) struct GivenUp(watch::Receiver<bool>);

impl GivenUp {
    /// Of something that nobody gives up.
    pub(crate) fn never() -> Self {
        Self(watch::channel(false).1)
    }

    /// The result of `work`; `None` when it is given up before that, and then `work` is dropped.
    pub(crate) async fn unless<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut told = self.0.clone();
        let given_up = async {
            if told.wait_for(|told| *told).await.is_err() {
                // Nobody is left who could give it up.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            () = given_up => None,
            done = work => Some(done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_creation_ends_when_it_is_given_up_and_its_id_is_free_again() {
        let creations = Creations::default();
        let creation = creations.begin("c").unwrap();
        assert!(creations.begin("c").is_none() && creations.begin("other").is_some());
        let given_up = creation.given_up();
        assert_eq!(given_up.unless(async { 7 }).await, Some(7));
        creations.give_up("other");
        let work = given_up.unless(std::future::pending::<()>());
        let give_up = async { creations.give_up("c") };
        assert_eq!(tokio::join!(work, give_up).0, None);
        assert_eq!(given_up.unless(async { 7 }).await, None, "what is given up does not begin again");
        drop(creation);
        assert_eq!(creations.begin("c").unwrap().given_up().unless(async { 7 }).await, Some(7));
        assert_eq!(GivenUp::never().unless(async { 7 }).await, Some(7));
    }
}
