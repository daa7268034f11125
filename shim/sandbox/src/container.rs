//! Creating a container: its files, its root file system, its specification.

use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use kata_cc_agent_protocol::agent as wire;
use kata_cc_vmm_api::{ControlReply, ControlRequest};
use serde_json::json;

use crate::log::Source;
use crate::sandbox::{
    ContainerSpec, Rootfs, Sandbox, SandboxError, context, failure_detail, failure_stage, io,
};
use crate::vm_shape::{self, ROOTFS_SLOTS};
use crate::{oci, rootfs, vmm};

/// Bytes of one CopyFile call.
const COPY_CHUNK: usize = 512 << 10;

impl Sandbox {
    /// Create a container; it does not run yet.
    ///
    /// # Errors
    /// See [`SandboxError`]; nothing is left of it then.
    pub async fn create_container(&self, container: &ContainerSpec) -> Result<(), SandboxError> {
        let result = self.try_create_container(container).await;
        if let Err(error) = &result {
            self.record.stage(failure_stage(error), failure_detail(error));
            self.log.add(
                Source::Shim,
                "error",
                &format!("container {} was not created: {error}", container.id),
            );
            self.release_slot(&container.id).await;
        }
        result
    }

    async fn try_create_container(&self, container: &ContainerSpec) -> Result<(), SandboxError> {
        let root = format!("/run/kata-containers/{}/rootfs", container.id);
        let mut converted = oci::convert(&container.id, &container.spec, &root)?;
        if !self.tier.is_confidential() && converted.spec.Hooks.is_some() {
            // They would run host programs inside the guest, where those are not.
            self.log.add(Source::Shim, "warn", "hooks of the container are not run in a microVM");
            converted.spec.Hooks = None.into();
        }
        for copy in &converted.copies {
            self.copy(&copy.from, &copy.to).await?;
        }
        let mut request = wire::CreateContainerRequest::new();
        request.container_id.clone_from(&container.id);
        request.exec_id.clone_from(&container.id);
        request.storages = self.storages(container, &root).await?;
        request.OCI = Some(converted.spec).into();
        self.call(self.agent.0.create_container(context(), &request)).await.map(drop)
    }

    async fn storages(
        &self,
        container: &ContainerSpec,
        root: &str,
    ) -> Result<Vec<wire::Storage>, SandboxError> {
        let mut storage = wire::Storage { mount_point: root.to_owned(), ..Default::default() };
        match &container.rootfs {
            Rootfs::HostDir(dir) => {
                let slot = self.take_slot(&container.id)?;
                let image = self.dir.join(format!("{}.img", vm_shape::rootfs_slot(slot)));
                rootfs::make_image(dir, &image).await?;
                self.control(&ControlRequest::AttachBlock { slot: vm_shape::rootfs_slot(slot), path: image })
                    .await?;
                storage.driver = "mmioblk".into();
                storage.source = vm_shape::rootfs_device(slot);
                storage.fstype = "erofs".into();
                storage.options = vec!["ro".into()];
            }
            Rootfs::GuestPull(image) => {
                let annotations = &container.spec["annotations"];
                let metadata = if annotations.is_object() { annotations.clone() } else { json!({}) };
                storage.driver = "image_guest_pull".into();
                storage.source.clone_from(image);
                storage.fstype = "overlay".into();
                storage.driver_options = vec![format!("image_guest_pull={}", json!({"metadata": metadata}))];
            }
            Rootfs::Pause => {
                storage.driver = "image_guest_pull".into();
                storage.source = "pause".into();
                storage.fstype = "overlay".into();
            }
        }
        Ok(vec![storage])
    }

    fn take_slot(&self, container: &str) -> Result<usize, SandboxError> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let free = (0..ROOTFS_SLOTS).find(|slot| !slots.contains(slot)).ok_or(SandboxError::NoSlot)?;
        slots.insert(free);
        let mut containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        containers.insert(container.to_owned(), Some(free));
        Ok(free)
    }

    pub(crate) async fn release_slot(&self, container: &str) {
        let slot = self.containers.lock().unwrap_or_else(PoisonError::into_inner).remove(container).flatten();
        let Some(slot) = slot else { return };
        let name = vm_shape::rootfs_slot(slot);
        // Refused when the VM has ended, and then nothing is to be done.
        let _ = self.control(&ControlRequest::DetachBlock { slot: name.clone() }).await;
        let _ = std::fs::remove_file(self.dir.join(format!("{name}.img")));
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(&slot);
    }

    async fn control(&self, request: &ControlRequest) -> Result<ControlReply, SandboxError> {
        match vmm::ask(&self.dir, request).await {
            Ok(ControlReply::Error { message }) => Err(SandboxError::Io {
                what: "the virtual machine monitor refused".into(),
                source: std::io::Error::other(message),
            }),
            Ok(reply) => Ok(reply),
            Err(error) => match tokio::time::timeout(Duration::from_secs(1), self.ended()).await {
                Ok(reason) => Err(SandboxError::Ended(reason)),
                Err(_) => Err(io("cannot reach the virtual machine monitor")(error)),
            },
        }
    }

    /// Copy a file, link or folder of the host into the guest.
    async fn copy(&self, from: &Path, to: &str) -> Result<(), SandboxError> {
        use std::os::unix::fs::MetadataExt;
        let failed = || io(format!("cannot copy {} into the guest", from.display()));
        let metadata = std::fs::metadata(from).map_err(failed())?;
        let mut request = wire::CopyFileRequest::new();
        to.clone_into(&mut request.path);
        request.dir_mode = 0o755;
        request.file_mode = metadata.mode();
        request.uid = i32::try_from(metadata.uid()).unwrap_or(0);
        request.gid = i32::try_from(metadata.gid()).unwrap_or(0);
        if metadata.is_dir() {
            self.call(self.agent.0.copy_file(context(), &request)).await?;
            for entry in std::fs::read_dir(from).map_err(failed())? {
                let entry = entry.map_err(failed())?;
                let inner = format!("{to}/{}", entry.file_name().to_string_lossy());
                Box::pin(self.copy(&entry.path(), &inner)).await?;
            }
            return Ok(());
        }
        let bytes = std::fs::read(from).map_err(failed())?;
        request.file_size = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        let mut offset = 0;
        loop {
            let end = bytes.len().min(offset + COPY_CHUNK);
            request.offset = i64::try_from(offset).unwrap_or(i64::MAX);
            request.data = bytes[offset..end].to_vec();
            self.call(self.agent.0.copy_file(context(), &request)).await?;
            offset = end;
            if offset == bytes.len() {
                return Ok(());
            }
        }
    }
}
