//! The layers of one image from the registry to the root folder: several downloads at a time, one unpacking after another.
//!
//! A download has two halves: the network's, a task, and one that hashes and writes, a thread; between them a short queue. Unpacking is a
//! third, which follows through the layer's [`Spool`]. Each waits for the next: none piles anything up.

use std::io;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::future::{Either, select};
use oci_client::Reference;
use tokio::sync::mpsc;

use super::source::{LayerSource, Stopped};
use super::spool::{End, Spool, Spools};
use super::staging::Staging;
use super::{OnProgress, Progress, PullTarget};
use crate::Limits;
use crate::error::PullError;
use crate::layer::{self, LayerPlan};
use crate::registry::Registry;
use crate::unpack::{Budget, Owner};

/// Pieces between the network and the thread that writes them.
const QUEUE: usize = 4;

/// What all layers of a pull have in common.
pub(super) struct Transfer<'t> {
    pub(super) registry: &'t Registry,
    pub(super) reference: &'t Reference,
    pub(super) limits: &'t Limits,
    pub(super) progress: OnProgress<'t>,
}

impl Transfer<'_> {
    /// Brings all layers to the root folder; gives the bytes they unpack to.
    pub(super) async fn run(&self, plans: Vec<LayerPlan>, target: &PullTarget) -> Result<u64, PullError> {
        let staging = Staging::new(target)?;
        let spools =
            Spools(plans.iter().map(|_| Arc::new(Spool::new(self.limits.max_ahead_bytes))).collect());
        let unpacked = self.downloads_and_unpacking(&plans, &spools, &staging).await?;
        staging.finish(&target.rootfs_dir)?;
        Ok(unpacked)
    }

    async fn downloads_and_unpacking(
        &self,
        plans: &[LayerPlan],
        spools: &Spools,
        staging: &Staging,
    ) -> Result<u64, PullError> {
        let layers = || plans.iter().zip(&spools.0);
        // In their order, so that few layers are ahead of the one that is unpacked; but the first failure ends all of them, whichever it is.
        let (fail, mut failed) = mpsc::channel(1);
        let download = async |(plan, spool)| {
            if let Err(error) = self.download(plan, spool, &staging.blobs).await {
                let _ = fail.send(error).await;
                futures::future::pending::<()>().await;
            }
        };
        let downloads = async {
            let all = futures::stream::iter(layers()).map(download).buffered(self.limits.max_parallel.max(1));
            tokio::select! {
                biased;
                Some(error) = failed.recv() => Err(error),
                () = all.collect() => Ok(()),
            }
        };
        let unpacking = async {
            let mut budget = Budget::new(self.limits.clone());
            for (plan, spool) in layers() {
                budget = self.unpack(plan, spool, &staging.root, budget).await.map_err(|e| (spool, e))?;
            }
            Ok(budget.bytes)
        };
        let (downloads, unpacking) = (pin!(downloads), pin!(unpacking));
        match select(downloads, unpacking).await {
            Either::Left((Ok(_), unpacking)) => unpacking.await.map_err(|(_, error)| error),
            Either::Left((Err(error), unpacking)) => {
                // The thread that unpacks must be done before its folder is removed.
                spools.0.iter().for_each(|spool| spool.end(End::Failed));
                let _ = unpacking.await;
                Err(error)
            }
            Either::Right((Ok(bytes), downloads)) => downloads.await.map(|_| bytes),
            Either::Right((Err((spool, error)), downloads)) => {
                // The archive may be broken because the registry sent another one: then that is the reason to tell.
                match select(pin!(spool.ended()), downloads).await {
                    Either::Left((End::Checked, _)) | Either::Right((Ok(_), _)) => Err(error),
                    Either::Left((End::Failed, downloads)) => Err(downloads.await.err().unwrap_or(error)),
                    Either::Right((Err(first), _)) => Err(first),
                }
            }
        }
    }

    async fn download(&self, plan: &LayerPlan, spool: &Arc<Spool>, folder: &Path) -> Result<(), PullError> {
        let layer = plan.number;
        let opened = spool.open(folder, &format!("layer-{layer}"));
        opened.map_err(|source| PullError::Spool { layer, source })?;
        let places = self.registry.blob_places(self.reference, &plan.digest)?;
        let (send, receive) = mpsc::channel(QUEUE);
        let (refuse, wrong) = mpsc::channel(1);
        let (told, mut tell) = tokio::sync::watch::channel(0);
        let writer = tokio::task::spawn_blocking({
            let (plan, spool) = (plan.clone(), spool.clone());
            move || {
                layer::receive(&plan, receive, &refuse, &spool, &|have| {
                    // A chunk that comes again is no way back.
                    told.send_if_modified(|most| std::mem::replace(most, have.max(*most)) < have);
                })
            }
        });
        let network = LayerSource::new(self.registry, plan, places).send(send, wrong);
        let progress = async {
            while tell.changed().await.is_ok() {
                let bytes = *tell.borrow_and_update();
                (self.progress)(Progress::Downloaded { layer, bytes, of: plan.size });
            }
        };
        let (sent, written, ()) = futures::join!(network, writer, progress);
        let written =
            written.unwrap_or_else(|panic| Err(PullError::Spool { layer, source: io::Error::other(panic) }));
        let result = match sent {
            Err(Stopped::Registry(error)) => Err(error.into()),
            Err(Stopped::Chunk(source)) => Err(PullError::Chunk { layer, source }),
            Ok(()) | Err(Stopped::Writer) => written,
        };
        if result.is_err() {
            spool.end(End::Failed);
        }
        result
    }

    async fn unpack(
        &self,
        plan: &LayerPlan,
        spool: &Arc<Spool>,
        root: &Path,
        budget: Budget,
    ) -> Result<Budget, PullError> {
        if !plan.streams() {
            // When it fails, the download has the reason.
            spool.ended().await;
        }
        let owner = if nix::unistd::geteuid().is_root() { Owner::Preserve } else { Owner::Caller };
        let work = tokio::task::spawn_blocking({
            let (plan, spool, root, mut budget) = (plan.clone(), spool.clone(), root.to_owned(), budget);
            move || layer::unpack(&plan, spool, &root, owner, &mut budget).map(|_| budget)
        });
        let unpacked =
            work.await.map_err(|panic| PullError::work("unpacking to", root)(io::Error::other(panic)))?;
        if unpacked.is_ok() {
            (self.progress)(Progress::Unpacked { layer: plan.number });
        }
        unpacked
    }
}
