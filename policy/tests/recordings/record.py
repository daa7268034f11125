"""Records what containerd makes of manifests: see README.md beside this file.

Runs as root inside namespaces of its own (it starts itself again in them): mounts, network and processes, so that nothing
is left and nothing leaves the machine.
"""

import argparse
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time

import grpc
import yaml

from kubelet import PODS, Pod

HERE = pathlib.Path(__file__).resolve().parent
CORPUS = HERE.parent / "corpus"
MANIFESTS = ["capabilities", "downward-files", "job-pi", "nginx-deployment", "postgres", "privileged", "procmount",
             "sidecar-native", "sysctls", "user-namespace"]
# A kubelet of the time of each containerd.
KUBELETS = {"1.6": "1.26", "1.7": "1.31", "2": "1.33"}
HANDLER = "kata-cc"
OWN = ["/run", "/var/lib", "/var/log"]

RUNC = """#!/bin/sh
# Keeps the specification of a container that is created, then is runc. A recorder without CAP_SYS_RESOURCE may not lower
# a process's OOM score, so that runc does not hear of one.
bundle= create= previous=
for word in "$@"; do
  [ "$previous" = --bundle ] && bundle=$word
  [ "$word" = create ] && create=yes
  previous=$word
done
if [ -n "$create" ]; then
  cp "$bundle/config.json" "{folder}/specs/$previous.json"
  sed -i 's/,"oomScoreAdj":-\\?[0-9]*//' "$bundle/config.json"
fi
exec {runc} "$@"
"""

CONFIG_2 = """version = 2
root = "{folder}/root"
state = "{folder}/state"
[grpc]
address = "{folder}/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{folder}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "{handler}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{handler}]
runtime_type = "io.containerd.runc.v2"
pod_annotations = ["io.katacontainers.*"]
privileged_without_host_devices = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{handler}.options]
BinaryName = "{folder}/runc"
"""

CONFIG_3 = """version = 3
root = "{folder}/root"
state = "{folder}/state"
[grpc]
address = "{folder}/c.sock"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{folder}/cni"
[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "{handler}"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.{handler}]
runtime_type = "io.containerd.runc.v2"
pod_annotations = ["io.katacontainers.*"]
privileged_without_host_devices = true
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.{handler}.options]
BinaryName = "{folder}/runc"
"""

NETWORK = {"cniVersion": "0.4.0", "name": "pods", "plugins": [{
    "type": "ptp", "ipam": {"type": "host-local", "subnet": "10.244.1.0/24"}}]}


def full_name(name):
    """As containerd names an image."""
    first, _, rest = name.partition("/")
    if not rest:
        name = f"docker.io/library/{name}"
    elif "." not in first and ":" not in first:
        name = f"docker.io/{name}"
    return name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"


def layer():
    """Busybox, and a pause program that sleeps."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        def add(name, data, mode):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), mode
            tar.addfile(info, io.BytesIO(data))

        for name in ("bin", "etc", "dev", "proc", "sys", "tmp", "root", "app"):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        add("bin/busybox", pathlib.Path("/bin/busybox").read_bytes(), 0o755)
        add("pause", b"#!/bin/busybox sh\nexec /bin/busybox sleep 86400\n", 0o755)
        add("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", 0o644)
        add("etc/group", b"root:x:0:\n", 0o644)
    return out.getvalue()


def archive(images, path):
    """An OCI layout with an image of each name, with its own configuration: the programs are busybox."""
    blobs, entries = {}, []

    def blob(kind, data):
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    files = blob("layer.v1.tar", layer())
    for name, config in images.items():
        config = {"architecture": "amd64", "os": "linux", "config": config,
                  "rootfs": {"type": "layers", "diff_ids": [files["digest"]]}}
        manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "config": blob("config.v1+json", json.dumps(config).encode()), "layers": [files]}
        entry = blob("manifest.v1+json", json.dumps(manifest).encode())
        entry["annotations"] = {"io.containerd.image.name": name}
        entries.append(entry)
    with tarfile.open(path, "w") as tar:
        files = {f"blobs/sha256/{digest}": data for digest, data in blobs.items()}
        files["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
        files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


class Containerd:
    """One, with the folder of its programs, in a folder of its own."""

    def __init__(self, programs, folder, pb, rpc):
        self.folder, self.pb = folder, pb
        self.env = dict(os.environ, PATH=f"{programs}:{os.environ['PATH']}")
        self.version = self.run("containerd", "--version").split()[2]
        self.line = "2" if self.version.startswith("2.") else self.version[:3]
        default = self.run("containerd", "config", "default")
        self.pause = re.search(r"""sandbox(?:_image)? = ['"](.+pause.+)['"]""", default).group(1)
        for name in ("specs", "cni"):
            (folder / name).mkdir()
        (folder / "cni/pods.conflist").write_text(json.dumps(NETWORK))
        runc = folder / "runc"
        runc.write_text(RUNC.replace("{folder}", str(folder)).replace("{runc}", shutil.which("runc")))
        runc.chmod(0o755)
        config = CONFIG_3 if self.line == "2" else CONFIG_2
        (folder / "config.toml").write_text(config.format(folder=folder, pause=self.pause, handler=HANDLER))
        log = (folder / "containerd.log").open("w")
        self.process = subprocess.Popen(["containerd", "--config", folder / "config.toml"], env=self.env, stdout=log, stderr=log)
        channel = grpc.insecure_channel(f"unix:{folder}/c.sock")
        self.runtime, self.images = rpc.RuntimeServiceStub(channel), rpc.ImageServiceStub(channel)
        for attempt in range(120):
            try:
                self.runtime.Version(pb.VersionRequest())
                break
            except grpc.RpcError as error:
                if attempt == 59 or self.process.poll() is not None:
                    raise RuntimeError((folder / "containerd.log").read_text()) from error
                time.sleep(0.5)

    def run(self, *command):
        return subprocess.run(command, env=self.env, check=True, capture_output=True, text=True).stdout

    def import_images(self, images):
        path = self.folder / "images.tar"
        archive(images | {self.pause: {"Entrypoint": ["/pause"], "User": "65535:65535", "WorkingDir": "/", "Env": [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}}, path)
        self.ctr("images", "import", str(path))
        self.image(self.pause)

    def image(self, name):
        request = self.pb.ImageStatusRequest(image=self.pb.ImageSpec(image=name))
        for _ in range(60):
            found = self.images.ImageStatus(request).image
            if found.id:
                return found
            time.sleep(0.5)
        raise RuntimeError(f"containerd has no image {name}")

    def ctr(self, *arguments):
        return self.run("ctr", "--address", f"{self.folder}/c.sock", "--namespace", "k8s.io", *arguments)

    def specs(self, container):
        """As the runtime got it; as containerd keeps it where it did not come to that (a runc that cannot map mounts)."""
        kept = self.folder / "specs" / f"{container}.json"
        return json.loads(kept.read_text() if kept.exists() else self.ctr("containers", "info", "--spec", container))

    def record(self, documents):
        pb = self.pb
        pod = Pod(documents, KUBELETS[self.line], pb)
        config = pod.sandbox()
        files(pod)
        sandbox = self.runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=config, runtime_handler=HANDLER)).pod_sandbox_id
        recorded = {"(sandbox)": self.specs(sandbox)}
        try:
            for container in pod.containers():
                own = pod.container(container, self.image(container["image"]))
                request = pb.CreateContainerRequest(pod_sandbox_id=sandbox, config=own, sandbox_config=config)
                container_id = self.runtime.CreateContainer(request).container_id
                try:
                    self.runtime.StartContainer(pb.StartContainerRequest(container_id=container_id))
                except grpc.RpcError:
                    pass  # of the image's programs there is none; runc was given the specification before it saw that
                recorded[container["name"]] = self.specs(container_id)
        finally:
            self.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=sandbox))
            self.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox))
        return {"containerd": self.version, "kubelet": KUBELETS[self.line], "containers": recorded}

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


def files(pod):
    """What the kubelet has put where the mounts lead."""
    shutil.rmtree(PODS, ignore_errors=True)
    for container in pod.containers():
        for mount in pod.mounts(container, "/dev/termination-log"):
            path = pathlib.Path(mount.host_path)
            if mount.container_path in ("/etc/hosts", "/dev/termination-log"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            elif str(path).startswith(PODS):
                path.mkdir(parents=True, exist_ok=True)


def without_empty_cgroups():
    for folder in pathlib.Path("/sys/fs/cgroup").glob("**/kubepods"):
        for below in sorted(folder.glob("**/"), key=lambda one: -len(one.parts)):
            if below.is_dir():
                below.rmdir()


def record(programs):
    for folder in OWN:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory(dir="/run") as name:
        folder = pathlib.Path(name)
        # the root of a user namespace is nobody here, and has to come through
        folder.chmod(0o711)
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{HERE}", f"--python_out={folder}",
                        f"--grpc_python_out={folder}", HERE / "cri.proto"], check=True)
        sys.path.insert(0, name)
        import cri_pb2 as pb
        import cri_pb2_grpc as rpc

        containerd = Containerd(programs, folder, pb, rpc)
        try:
            known = {full_name(name): one["config"] for name, one in json.loads((CORPUS / "images.json").read_text()).items()}
            containerd.import_images(known)
            for manifest in MANIFESTS:
                documents = [one for one in yaml.safe_load_all((CORPUS / f"{manifest}.yaml").read_text()) if one]
                try:
                    recorded = {"manifest": f"{manifest}.yaml"} | containerd.record(documents)
                except grpc.RpcError as error:
                    print(f"{containerd.version} does not start {manifest}: {error.details()}")
                    continue
                out = HERE / {"2": "2.x"}.get(containerd.line, containerd.line) / f"{manifest}.json"
                out.parent.mkdir(exist_ok=True)
                out.write_text(compact(recorded))
                print(f"{containerd.version} {manifest}: {', '.join(recorded['containers'])}")
        finally:
            containerd.stop()
            without_empty_cgroups()


def compact(recorded):
    """One line for a field of a specification: to be read, compared, and kept small."""
    dump = lambda value: json.dumps(value, separators=(",", ":"))
    field = lambda pairs: ",\n".join(f"  {dump(key)}: {dump(value)}" for key, value in pairs.items())
    head = "".join(f"{dump(key)}: {dump(value)},\n" for key, value in recorded.items() if key != "containers")
    specs = ",\n".join(f" {dump(key)}: {{\n{field(spec)}\n }}" for key, spec in recorded["containers"].items())
    return f'{{\n{head}"containers": {{\n{specs}\n}}\n}}\n'


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("programs", help="folder with containerd, ctr and containerd-shim-runc-v2")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        record(arguments.programs)
    else:
        inside = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable]
        sys.exit(subprocess.run([*inside, __file__, arguments.programs, "--inside"]).returncode)


if __name__ == "__main__":
    main()
