//! Starts and drives one sandbox, for the containerd shim and for the `kata-cc` command alike.
//!
//! Rooms: [`tier`] decides what protects the sandbox (one pure function), [`config`] and [`paths`] say where things
//! are, [`vm_shape`] what the virtual machine is made of, [`sizing`] how large it is, [`initdata`] what a confidential
//! guest is started with, `monitor` starts the process that is the sandbox, `vmm` and `sentry` say which, `channel` speaks to the agent, [`egress`] is the guest's way out,
//! [`RootImage`] is what the guest itself runs from, [`network`] joins it to the pod's network, [`rootfs`] hands in a root file system, [`copy`] small files, [`oci`] turns a
//! container's specification into an agent request, `disks` are scratch and root file systems, `cgroup` and `charge` are where the monitor is
//! charged, `machine` what a sandbox has on the host beside it, `launch` puts them together, and [`sandbox`] is the result.
//! [`record`] and [`log`] keep what happened, `leftovers` what is to be removed if the shim dies.
//!
//! Whatever process dies at whatever moment, no call hangs: each is raced against the end of the VM.

mod cgroup;
mod channel;
mod charge;
pub mod config;
mod container;
pub mod copy;
mod disks;
pub mod egress;
mod empty_dir;
mod guest_log;
pub mod image_cache;
pub mod initdata;
mod launch;
mod leftovers;
pub mod log;
mod machine;
mod monitor;
pub mod network;
pub mod oci;
pub mod paths;
mod process;
mod processes;
pub mod record;
pub mod requests;
mod root_image;
pub mod rootfs;
pub mod sandbox;
pub mod sealed;
mod sealing;
mod sentry;
pub mod sizing;
pub mod tier;
pub mod vm_shape;
mod vmm;

pub use config::NodeConfig;
pub use guest_log::Pull;
pub use leftovers::cleanup_leftovers;
pub use root_image::{RootImage, RootImageError};
pub use sandbox::{ContainerSpec, Output, Rootfs, Sandbox, SandboxError, SandboxSpec};
pub use tier::{Class, Tier};
