//! `./x images`: container images of the two services as OCI layouts in `target/images`, each built from its Containerfile and tried:
//! its entry point is started as its user, from its files alone, read-only, and must become ready and end in order.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::paths;
use crate::shell::{command, output, run, step};

/// User of both images.
const USER: &str = "65532:65532";
/// How long a service may take to be ready, and to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// As a runtime would start it: read-only, but for the volume of the state, which keeps the owner that the image gives it; with a few
/// devices. Arguments: root, state, where the configuration is mounted, configuration, command.
const TRY: &str = r#"set -e
mount --bind "$1" "$1"
mount --bind "$2" "$2"
mount --bind -o ro "$4" "$3"
mount -t tmpfs dev "$1/dev"
for device in null urandom random; do
    : > "$1/dev/$device"
    mount --bind "/dev/$device" "$1/dev/$device"
done
mount -o remount,ro,bind "$1"
root=$1
shift 4
exec chroot --userspec=65532:65532 "$root" "$@""#;

/// A service with an image.
struct Service {
    /// Folder in `deploy/`, and name of the binary.
    name: &'static str,
    /// Files of that folder that go into the image.
    files: &'static [&'static str],
    /// Folder in the image that the service writes to.
    state: &'static str,
    /// Fills the folder that is mounted over `.1` of the image; gives further arguments.
    prepare: fn(&Path) -> anyhow::Result<Vec<String>>,
    /// Where that folder is mounted.
    configuration: &'static str,
}

const SERVICES: [Service; 2] = [
    Service {
        name: "kbs",
        files: &[],
        state: "/var/lib/kbs",
        prepare: key_broker,
        configuration: "/etc/kbs",
    },
    Service {
        name: "attestation-service",
        files: &["container.toml"],
        state: "/var/lib/kata-cc/attestation-service",
        prepare: attestation_service,
        configuration: "/etc/kata-cc",
    },
];

fn key_broker(folder: &Path) -> anyhow::Result<Vec<String>> {
    let (kbs, state) = (paths::binaries().join("kbs"), folder.with_extension("state"));
    let made = folder.to_string_lossy();
    // The state's folder is that of the image: what is made here is only named in the configuration.
    let arguments = ["init", &made, "--state", &state.to_string_lossy(), "--socket", "127.0.0.1:0"];
    run(Command::new(kbs).args(arguments).stdout(Stdio::null()))?;
    let file = folder.join("kbs.toml");
    let text = std::fs::read_to_string(&file)?.replace(&*state.to_string_lossy(), "/var/lib/kbs");
    std::fs::write(&file, text)?;
    Ok(Vec::new())
}

/// The image's own configuration, but listening on loopback only, with a key for the administrator.
fn attestation_service(folder: &Path) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(paths::root().join("deploy/attestation-service/container.toml"))?;
    std::fs::write(folder.join("attestation-service.toml"), text)?;
    let private = folder.join("admin.key");
    let arguments = ["genpkey", "-algorithm", "ed25519", "-out"];
    run(Command::new("openssl").args(arguments).arg(&private))?;
    let public = ["pkey", "-pubout", "-in"];
    run(Command::new("openssl").args(public).arg(&private).arg("-out").arg(folder.join("admin.pub")))?;
    Ok(["-s", "127.0.0.1:0", "--grpc-socket", "127.0.0.1:0"].map(str::to_owned).to_vec())
}

/// Builds and tries all images. Where nothing can be mounted, as in a container without that right, neither can be done, and that is said.
pub(crate) fn build() -> anyhow::Result<()> {
    let mut mount = Command::new("unshare");
    mount.args(["--mount", "--", "mount", "-t", "tmpfs", "none", "/mnt"]).stderr(Stdio::null());
    if !mount.status().is_ok_and(|status| status.success()) {
        println!("x: nothing can be mounted here: the container images were NOT built and tried");
        return Ok(());
    }
    for service in &SERVICES {
        step(&format!("container image of {}", service.name));
        let folder = paths::root().join("target/images").join(service.name);
        remove(&folder)?;
        let layout = service.image(&folder)?;
        let work = folder.join("try");
        let tried = service.attempt(&layout, &work);
        remove(&work)?;
        tried.with_context(|| format!("the image of {} does not work", service.name))?;
        println!("{}", layout.display());
    }
    Ok(())
}

fn remove(folder: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

impl Service {
    /// Builds the image, an OCI layout.
    fn image(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        let (context, storage, layout) = (folder.join("context"), folder.join("storage"), folder.join("oci"));
        let deploy = paths::root().join("deploy").join(self.name);
        std::fs::create_dir_all(context.join("state"))?;
        std::fs::copy(paths::binaries().join(self.name), context.join(self.name))?;
        for file in self.files {
            std::fs::copy(deploy.join(file), context.join(file))?;
        }
        let tag = format!("kata-cc-{}", self.name);
        let buildah = || {
            let mut buildah = command("buildah", &["--storage-driver", "vfs", "--root"]);
            buildah.arg(storage.join("root")).arg("--runroot").arg(storage.join("run"));
            buildah
        };
        // Nothing is run in the build, so nothing has to be isolated; the same inputs give the same bytes.
        let arguments =
            ["build", "--quiet", "--isolation", "chroot", "--timestamp", "0", "--tag", &tag, "--file"];
        run(buildah().args(arguments).arg(deploy.join("Containerfile")).arg(&context).stdout(Stdio::null()))?;
        run(buildah().args(["push", "--quiet", &tag]).arg(format!("oci:{}:latest", layout.display())))?;
        remove(&storage)?;
        remove(&context)?;
        Ok(layout)
    }

    /// Starts what the image holds, as its configuration says.
    fn attempt(&self, layout: &Path, work: &Path) -> anyhow::Result<()> {
        let (root, configuration) = (work.join("root"), work.join("configuration"));
        for folder in [&root, &configuration] {
            std::fs::create_dir_all(folder)?;
        }
        let image = unpack(layout, &root)?;
        let of_image = |name: &str| -> Vec<String> {
            let list = image["config"][name].as_array().into_iter().flatten();
            list.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        ensure!(image["config"]["User"] == USER, "its user is {}", image["config"]["User"]);
        let mut arguments = [of_image("Entrypoint"), of_image("Cmd")].concat();
        arguments.extend((self.prepare)(&configuration)?);
        run(Command::new("chown").args(["-R", USER]).arg(&configuration))?;
        let inside = |path: &str| root.join(path.trim_start_matches('/'));
        let target = inside(self.configuration);
        std::fs::create_dir_all(&target)?;
        std::fs::create_dir_all(root.join("dev"))?;
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--", "sh", "-c", TRY, "sh"]).arg(&root).arg(inside(self.state));
        unshare.arg(&target).arg(&configuration).args(&arguments);
        for variable in of_image("Env") {
            if let Some((name, value)) = variable.split_once('=') {
                unshare.env(name, value);
            }
        }
        let child = unshare.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        ready_and_end(child)
    }
}

/// Unpacks the layers of a layout; gives the image's configuration.
fn unpack(layout: &Path, root: &Path) -> anyhow::Result<Value> {
    let blob = |descriptor: &Value| -> anyhow::Result<PathBuf> {
        let digest = descriptor["digest"].as_str().context("a descriptor has no digest")?;
        Ok(layout.join("blobs").join(digest.replace(':', "/")))
    };
    let read = |path: &Path| -> anyhow::Result<Value> { Ok(serde_json::from_slice(&std::fs::read(path)?)?) };
    let index = read(&layout.join("index.json"))?;
    let manifest = read(&blob(&index["manifests"][0])?)?;
    for layer in manifest["layers"].as_array().context("the manifest has no layers")? {
        run(Command::new("tar").arg("--numeric-owner").arg("-xpzf").arg(blob(layer)?).arg("-C").arg(root))?;
    }
    read(&blob(&manifest["config"])?)
}

/// Waits until the service listens and says that it is ready, then ends it.
fn ready_and_end(mut child: Child) -> anyhow::Result<()> {
    let log = BufReader::new(child.stderr.take().context("no standard error")?);
    let begin = Instant::now();
    let (lines, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || log.lines().map_while(Result::ok).for_each(|line| drop(lines.send(line))));
    let mut all = String::new();
    let ready = loop {
        let Ok(line) = heard.recv_timeout(PATIENCE.saturating_sub(begin.elapsed())) else { break false };
        all.push_str(&line);
        all.push('\n');
        if let Some(address) = address(&line)
            && !line.contains("grpc")
        {
            let url = format!("://{address}/readyz");
            // The key broker speaks TLS with a certificate of its own making.
            let scheme =
                if line.contains("tls=true") || line.contains("\"tls\":true") { "https" } else { "http" };
            let curl = ["--silent", "--fail", "--insecure", "--noproxy", "*", "--max-time", "10"];
            break output(Command::new("curl").args(curl).arg(format!("{scheme}{url}"))).is_ok();
        }
    };
    run(Command::new("kill").args(["-TERM", &child.id().to_string()]))?;
    let ended = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if begin.elapsed() > PATIENCE * 2 => {
                child.kill()?;
                bail!("it did not end at SIGTERM:\n{all}");
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    all.extend(heard.iter().map(|line| line + "\n"));
    ensure!(ready, "it was not ready in {PATIENCE:?}:\n{all}");
    ensure!(ended.success(), "it ended with {ended}:\n{all}");
    Ok(())
}

/// The address in a line of the log, as text or JSON.
fn address(line: &str) -> Option<&str> {
    let (_, after) = line.split_once("address=").or_else(|| line.split_once("\"address\":\""))?;
    after.split(|c: char| c.is_whitespace() || c == '"').next()
}
