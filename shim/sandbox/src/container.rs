//! Creating a container: its files, its root file system, its specification.

use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

use kata_cc_agent_protocol::agent as wire;
use kata_cc_oci::wire as common;
use kata_cc_vmm_api::{ControlReply, ControlRequest};
use serde_json::json;

use crate::copy::{self, Content, CopyError};
use crate::empty_dir::EmptyDir;
use crate::image_cache::ImageCache;
use crate::log::Source;
use crate::machine::{Machine, Vm};
use crate::sandbox::{
    ContainerSpec, Rootfs, Sandbox, SandboxError, context, failure_detail, failure_stage, io,
};
use crate::vm_shape::{self, ROOTFS_SLOTS};
use crate::{oci, paths, rootfs, sealed, sealing, vmm};

impl Vm {
    fn rootfs_image(&self, slot: usize) -> PathBuf {
        self.disks.file(&format!("{}.img", vm_shape::rootfs_slot(slot)))
    }
}

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
        } else {
            self.log.add(Source::Shim, "info", &format!("container {} is created", container.id));
        }
        result
    }

    async fn try_create_container(&self, container: &ContainerSpec) -> Result<(), SandboxError> {
        if !self.tier.is_confidential()
            && let Some(name) = sealed::variable_of(&container.spec)
        {
            return Err(sealed::refuse(&format!("environment variable {name}")).into());
        }
        let Machine::Vm(vm) = &self.machine else { return self.create_in_sentry(container).await };
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
        request.storages = self.storages(vm, container, &root).await?;
        request.storages.extend(converted.empty_dirs.iter().map(EmptyDir::storage));
        request.OCI = Some(converted.spec).into();
        self.call(self.agent.0.create_container(context(), self.sent(&request))).await.map(drop)
    }

    /// Paths are the host's, and the sentry takes them as they are. The rest of a mount is its business, and its refusals say so.
    async fn create_in_sentry(&self, container: &ContainerSpec) -> Result<(), SandboxError> {
        let Rootfs::HostDir(root) = &container.rootfs else { return Err(SandboxError::NoHostRoot) };
        if container.spec["hooks"].as_object().is_some_and(|hooks| !hooks.is_empty()) {
            self.log.add(
                Source::Shim,
                "warn",
                "hooks that run inside the container are not run by the sentry",
            );
        }
        let spec = common::for_sentry(&container.id, &container.spec, &root.to_string_lossy());
        let mut request = wire::CreateContainerRequest::new();
        request.container_id.clone_from(&container.id);
        request.exec_id.clone_from(&container.id);
        request.OCI = Some(spec).into();
        self.call(self.agent.0.create_container(context(), self.sent(&request))).await?;
        let mut containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        containers.insert(container.id.clone(), None);
        Ok(())
    }

    async fn storages(
        &self,
        vm: &Vm,
        container: &ContainerSpec,
        root: &str,
    ) -> Result<Vec<wire::Storage>, SandboxError> {
        let mut storage = wire::Storage { mount_point: root.to_owned(), ..Default::default() };
        match &container.rootfs {
            Rootfs::HostDir(dir) => {
                let slot = self.take_slot(vm, &container.id)?;
                let image = vm.rootfs_image(slot);
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
                storage.driver_options.extend(self.offer_sealed(vm, &container.id, image).await?);
            }
            Rootfs::Pause => {
                storage.driver = "image_guest_pull".into();
                storage.source = "pause".into();
                storage.fstype = "overlay".into();
            }
        }
        Ok(vec![storage])
    }

    /// Attaches this node's sealed copy of an image, when there is one; gives the driver option that tells the guest of it. Whether the
    /// guest takes it is the guest's business: it pulls the image itself when it has no seal.
    async fn offer_sealed(
        &self,
        vm: &Vm,
        container: &str,
        image: &str,
    ) -> Result<Option<String>, SandboxError> {
        let Some(path) = ImageCache::below(&paths::state_dir()).offer(image) else {
            if self.seal_at_first_use {
                sealing::begin(image, &self.log);
            }
            return Ok(None);
        };
        let Ok(slot) = self.take_slot(vm, container) else {
            self.log.add(Source::Shim, "info", "no slot is free for the sealed image: the guest pulls it");
            return Ok(None);
        };
        let attach = ControlRequest::AttachBlock { slot: vm_shape::rootfs_slot(slot), path };
        self.control(&attach).await?;
        Ok(Some(format!("kata-cc.sealed={}", vm_shape::rootfs_device(slot))))
    }

    fn take_slot(&self, vm: &Vm, container: &str) -> Result<usize, SandboxError> {
        let mut slots = vm.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let free = (0..ROOTFS_SLOTS).find(|slot| !slots.contains(slot)).ok_or(SandboxError::NoSlot)?;
        slots.insert(free);
        let mut containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        containers.insert(container.to_owned(), Some(free));
        Ok(free)
    }

    pub(crate) async fn release_slot(&self, container: &str) {
        let slot = self.containers.lock().unwrap_or_else(PoisonError::into_inner).remove(container).flatten();
        let (Some(slot), Machine::Vm(vm)) = (slot, &self.machine) else { return };
        let name = vm_shape::rootfs_slot(slot);
        // Refused when the VM has ended, and then nothing is to be done.
        let _ = self.control(&ControlRequest::DetachBlock { slot: name.clone() }).await;
        let _ = std::fs::remove_file(vm.rootfs_image(slot));
        vm.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(&slot);
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

    /// Copy a file or folder of the host into the guest; see [`crate::copy`] for what of it.
    async fn copy(&self, from: &Path, to: &str) -> Result<(), SandboxError> {
        let failed = |why: CopyError| SandboxError::Copy { from: from.to_owned(), why };
        let mut walk = copy::Walk::new(from);
        // At most MAX_BYTES in pieces of CHUNK are read here, from local files: too little to be worth another thread.
        while let Some(item) = walk.next().map_err(failed)? {
            let mut request = wire::CopyFileRequest::new();
            request.path = match item.below.as_os_str().is_empty() {
                true => to.to_owned(),
                false => format!("{to}/{}", item.below.to_string_lossy()),
            };
            request.dir_mode = 0o755;
            (request.file_mode, request.uid, request.gid) = copy::attributes(&item.metadata);
            match item.content {
                Content::Folder => self.copy_file(&request).await?,
                Content::Link(target) => {
                    request.data = target.into_os_string().into_encoded_bytes();
                    self.copy_file(&request).await?;
                }
                Content::File(mut chunks) => {
                    request.file_size = i64::try_from(item.metadata.len()).unwrap_or(i64::MAX);
                    loop {
                        request.data = chunks.next_piece().map_err(failed)?;
                        if request.offset == 0
                            && !self.tier.is_confidential()
                            && sealed::begins(&request.data)
                        {
                            return Err(sealed::refuse(&format!("file {}", request.path)).into());
                        }
                        let length = i64::try_from(request.data.len()).unwrap_or(i64::MAX);
                        // An empty file takes one call, without data.
                        self.copy_file(&request).await?;
                        request.offset += length;
                        if request.offset == request.file_size {
                            break;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    async fn copy_file(&self, request: &wire::CopyFileRequest) -> Result<(), SandboxError> {
        self.call(self.agent.0.copy_file(context(), self.sent(request))).await.map(drop)
    }
}
