"""What a kubelet makes of a Pod: the messages of the CRI that start it.

Rules, by their place in kubernetes/kubernetes:
  names, labels, annotations      pkg/kubelet/kuberuntime/labels.go
  sandbox                         pkg/kubelet/kuberuntime/kuberuntime_sandbox.go, kuberuntime_sandbox_linux.go
  container, termination log      pkg/kubelet/kuberuntime/kuberuntime_container.go
  resources, OOM score            pkg/kubelet/kuberuntime/kuberuntime_container_linux.go, pkg/kubelet/qos/policy.go
  security context                pkg/kubelet/kuberuntime/security_context.go, pkg/securitycontext/util.go
  mounts, /etc/hosts, environment pkg/kubelet/kubelet_pods.go
  service account's token         plugin/pkg/admission/serviceaccount/admission.go
Only what the recorded manifests use is here; anything else ends in an error rather than in a wrong recording.
"""

import json
import re

UID = "7b9f0d3e-5c2a-4b1e-9d7d-1f2e3a4b5c6d"
PODS = f"/var/lib/kubelet/pods/{UID}"
TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"

# Paths that Kubernetes hides: until 1.30, and what 1.31 and 1.33 made of them.
MASKED = ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
          "/proc/sched_debug", "/proc/scsi", "/sys/firmware"]
READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


def masked_paths(minor, cpus):
    if minor < 31:
        return MASKED
    paths = ["/proc/asound", *MASKED, "/sys/devices/virtual/powercap"]
    if minor >= 33:
        paths.append("/proc/interrupts")
        paths += [f"/sys/devices/system/cpu/cpu{n}/thermal_throttle" for n in range(cpus)]
    return paths


def readonly_paths(minor):
    return ["/proc/asound", *READONLY] if minor < 31 else READONLY


def milli(quantity):
    text = str(quantity)
    return int(text[:-1]) if text.endswith("m") else round(float(text) * 1000)


def in_bytes(quantity):
    text = str(quantity)
    for unit, size in (("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30)):
        if text.endswith(unit):
            return int(text[:-2]) * size
    return int(text)


def expanded(text, known):
    """`$(NAME)` by its value if there is one, `$$` by `$` (third_party/forked/golang/expansion)."""

    def one(match):
        if match.group(0) == "$$":
            return "$"
        return known.get(match.group(1), match.group(0))

    return re.sub(r"\$\$|\$\(([^()]+)\)", one, text)


class Pod:
    """A workload's pod, as the API server has it after its controller and admission."""

    def __init__(self, documents, kubelet, pb):
        self.pb, self.minor = pb, int(kubelet.split(".")[1])
        objects = {}
        for document in documents:
            objects.setdefault(document["kind"], {})[document["metadata"]["name"]] = document
        self.config_maps = {name: one.get("data", {}) for name, one in objects.pop("ConfigMap", {}).items()}
        (kind, ((owner, document),)) = next((kind, one.items()) for kind, one in objects.items())
        template = document if kind == "Pod" else document["spec"]["template"]
        metadata = template.get("metadata", {})
        self.spec = template["spec"]
        self.name = owner + {"Pod": "", "Deployment": "-7c5ddbdf54-x2x9z", "StatefulSet": "-0", "Job": "-x2x9z"}[kind]
        self.namespace = document["metadata"].get("namespace", "default")
        self.labels, self.annotations = dict(metadata.get("labels", {})), dict(metadata.get("annotations", {}))
        if kind == "Deployment":
            self.labels["pod-template-hash"] = "7c5ddbdf54"
        if kind == "StatefulSet":
            self.labels |= {"apps.kubernetes.io/pod-index": "0", "statefulset.kubernetes.io/pod-name": self.name}
        if kind == "Job":
            self.labels |= {"batch.kubernetes.io/job-name": owner, "job-name": owner}
        self.volumes = {one["name"]: one for one in self.spec.get("volumes", [])}
        for claim in document["spec"].get("volumeClaimTemplates", []):
            self.volumes[claim["metadata"]["name"]] = {"persistentVolumeClaim": {}}
        self.volumes["kube-api-access-x2x9z"] = {"projected": {}}
        self.inits = self.spec.get("initContainers", [])
        self.security = self.spec.get("securityContext", {})

    def containers(self):
        return self.inits + self.spec["containers"]

    # -- the sandbox

    def sandbox(self):
        pb = self.pb
        labels = self.labels | self.identity()
        privileged = any(one.get("securityContext", {}).get("privileged") for one in self.containers())
        security = pb.LinuxSandboxSecurityContext(
            namespace_options=self.namespaces(), privileged=privileged,
            # forced, whatever the pod says
            seccomp=pb.SecurityProfile(profile_type="RuntimeDefault"), supplemental_groups=self.groups())
        if "runAsUser" in self.security:
            security.run_as_user.value = self.security["runAsUser"]
        linux = pb.LinuxPodSandboxConfig(
            cgroup_parent=f"/kubepods/{self.qos().lower()}/pod{UID}", security_context=security,
            sysctls={one["name"]: one["value"] for one in self.security.get("sysctls", [])},
            resources=self.sum_of_resources(), overhead=pb.LinuxContainerResources())
        return pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=self.name, uid=UID, namespace=self.namespace),
            hostname=self.spec.get("hostname", self.name)[:63],
            log_directory=f"/var/log/pods/{self.namespace}_{self.name}_{UID}",
            dns_config=pb.DNSConfig(servers=["10.96.0.10"], options=["ndots:5"], searches=[
                f"{self.namespace}.svc.cluster.local", "svc.cluster.local", "cluster.local"]),
            labels=labels, annotations=self.annotations, linux=linux)

    def identity(self):
        return {"io.kubernetes.pod.name": self.name, "io.kubernetes.pod.namespace": self.namespace,
                "io.kubernetes.pod.uid": UID}

    def namespaces(self):
        pb = self.pb
        mode = "POD" if self.spec.get("shareProcessNamespace") else "CONTAINER"
        options = pb.NamespaceOption(network="POD", pid=mode, ipc="POD")
        # before, the API server leaves the field out
        if self.minor >= 30 and self.spec.get("hostUsers") is False:
            mapping = [pb.IDMapping(host_id=65536, container_id=0, length=65536)]
            options.userns_options.CopyFrom(pb.UserNamespace(mode="POD", uids=mapping, gids=mapping))
        return options

    def groups(self):
        groups = [self.security["fsGroup"]] if "fsGroup" in self.security else []
        return groups + self.security.get("supplementalGroups", [])

    # -- resources

    def limits(self, container):
        resources = container.get("resources", {})
        limits = resources.get("limits", {})
        # the API server's default: what is limited is requested
        return limits, limits | resources.get("requests", {})

    def qos(self):
        found = [self.limits(one) for one in self.containers()]
        if not any(limits or requests for limits, requests in found):
            return "BestEffort"
        if all(limits == requests and {"cpu", "memory"} <= limits.keys() for limits, requests in found):
            return "Guaranteed"
        return "Burstable"

    def linux_resources(self, cpu, requested, memory):
        shares = max(2, milli(requested) * 1024 // 1000) if requested else 2
        resources = self.pb.LinuxContainerResources(cpu_period=100_000, cpu_shares=shares)
        if cpu:
            resources.cpu_quota = max(1000, milli(cpu) * 100)
        if memory:
            resources.memory_limit_in_bytes = in_bytes(memory)
        return resources

    def sum_of_resources(self):
        found = [self.limits(one) for one in self.spec["containers"]]
        if len(found) != 1 and any(limits or requests for limits, requests in found):
            raise NotImplementedError("resources of several containers")
        limits, requests = found[0]
        return self.linux_resources(limits.get("cpu"), requests.get("cpu"), limits.get("memory"))

    def resources(self, container):
        limits, requests = self.limits(container)
        resources = self.linux_resources(limits.get("cpu"), requests.get("cpu"), limits.get("memory"))
        resources.oom_score_adj = {"BestEffort": 1000, "Guaranteed": -997}.get(self.qos(), 999)
        for size in ("2MB", "1GB"):
            resources.hugepage_limits.add(page_size=size, limit=0)
        return resources

    # -- a container

    def container(self, container, image):
        pb = self.pb
        env = self.environment(container)
        words = lambda key: [expanded(word, env) for word in container.get(key, [])]
        spec = pb.ImageSpec(image=image.id)
        if self.minor >= 28:
            spec.user_specified_image = container["image"]
        path = container.get("terminationMessagePath", "/dev/termination-log")
        annotations = {
            "io.kubernetes.container.hash": "8a3f52c1", "io.kubernetes.container.restartCount": "0",
            "io.kubernetes.container.terminationMessagePath": path,
            "io.kubernetes.container.terminationMessagePolicy": container.get("terminationMessagePolicy", "File"),
            "io.kubernetes.pod.terminationGracePeriod": str(self.spec.get("terminationGracePeriodSeconds", 30))}
        stop = container.get("lifecycle", {}).get("preStop")
        if stop:
            annotations["io.kubernetes.container.preStopHandler"] = json.dumps(stop, separators=(",", ":"))
        return pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=container["name"]), image=spec, command=words("command"),
            args=words("args"), working_dir=container.get("workingDir", ""),
            envs=[pb.KeyValue(key=key, value=value) for key, value in env.items()],
            mounts=self.mounts(container, path),
            labels=self.identity() | {"io.kubernetes.container.name": container["name"]}, annotations=annotations,
            log_path=f"{container['name']}/0.log", stdin=container.get("stdin", False), tty=container.get("tty", False),
            linux=pb.LinuxContainerConfig(resources=self.resources(container),
                                          security_context=self.context(container, image)))

    def context(self, container, image):
        pb, own = self.pb, self.security | container.get("securityContext", {})
        unmasked = own.get("procMount") == "Unmasked"
        capabilities = own.get("capabilities", {})
        profile = own.get("seccompProfile", {}).get("type", "Unconfined")
        context = pb.LinuxContainerSecurityContext(
            capabilities=pb.Capability(add_capabilities=capabilities.get("add", []),
                                       drop_capabilities=capabilities.get("drop", [])),
            privileged=own.get("privileged", False), namespace_options=self.namespaces(),
            readonly_rootfs=own.get("readOnlyRootFilesystem", False), supplemental_groups=self.groups(),
            no_new_privs=own.get("allowPrivilegeEscalation") is False,
            masked_paths=[] if unmasked else masked_paths(self.minor, 2),
            readonly_paths=[] if unmasked else readonly_paths(self.minor),
            seccomp=pb.SecurityProfile(profile_type=profile))
        if "runAsUser" in own:
            context.run_as_user.value = own["runAsUser"]
        elif image.username:
            context.run_as_username = image.username
        else:
            context.run_as_user.value = image.uid.value
        if "runAsGroup" in own:
            context.run_as_group.value = own["runAsGroup"]
        return context

    def mounts(self, container, termination_path):
        pb, mounts = self.pb, []
        named = list(container.get("volumeMounts", []))
        named.append({"name": "kube-api-access-x2x9z", "mountPath": TOKEN, "readOnly": True})
        for mount in named:
            host, always_read_only = self.host_path(mount["name"])
            mounts.append(pb.Mount(container_path=mount["mountPath"], host_path=host,
                                   readonly=mount.get("readOnly", False) or always_read_only))
        mounts.append(pb.Mount(container_path="/etc/hosts", host_path=f"{PODS}/etc-hosts", selinux_relabel=True))
        mounts.append(pb.Mount(container_path=termination_path, selinux_relabel=True,
                               host_path=f"{PODS}/containers/{container['name']}/d8c8d3c1"))
        users = self.namespaces().userns_options
        for mount in mounts:
            mount.uidMappings.extend(users.uids)
            mount.gidMappings.extend(users.gids)
        return mounts

    def host_path(self, name):
        volume = self.volumes[name]
        if "hostPath" in volume:
            return volume["hostPath"]["path"], False
        if "persistentVolumeClaim" in volume:
            return f"{PODS}/volumes/kubernetes.io~csi/pvc-3d6e1f0a-0b7c-4e55-8c1b-2f8a4d1c9e77/mount", False
        for kind, folder, read_only in (("emptyDir", "empty-dir", False), ("configMap", "configmap", True),
                                        ("secret", "secret", True), ("downwardAPI", "downward-api", True),
                                        ("projected", "projected", True)):
            if kind in volume:
                return f"{PODS}/volumes/kubernetes.io~{folder}/{name}", read_only
        raise NotImplementedError(f"volume {volume}")

    def environment(self, container):
        services = {
            "KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443",
            "KUBERNETES_SERVICE_PORT_HTTPS": "443", "KUBERNETES_PORT": "tcp://10.96.0.1:443",
            "KUBERNETES_PORT_443_TCP": "tcp://10.96.0.1:443", "KUBERNETES_PORT_443_TCP_PROTO": "tcp",
            "KUBERNETES_PORT_443_TCP_PORT": "443", "KUBERNETES_PORT_443_TCP_ADDR": "10.96.0.1"}
        if self.spec.get("enableServiceLinks", True):
            services |= {
                "SHOP_API_SERVICE_HOST": "10.96.7.7", "SHOP_API_SERVICE_PORT": "8080",
                "SHOP_API_SERVICE_PORT_HTTP": "8080", "SHOP_API_PORT": "tcp://10.96.7.7:8080",
                "SHOP_API_PORT_8080_TCP": "tcp://10.96.7.7:8080", "SHOP_API_PORT_8080_TCP_PROTO": "tcp",
                "SHOP_API_PORT_8080_TCP_PORT": "8080", "SHOP_API_PORT_8080_TCP_ADDR": "10.96.7.7"}
        env = {}
        for source in container.get("envFrom", []):
            prefix = source.get("prefix", "")
            env |= {prefix + key: value for key, value in self.config_maps[source["configMapRef"]["name"]].items()}
        for variable in container.get("env", []):
            env[variable["name"]] = self.value(container, variable, services | env)
        return env | {key: value for key, value in services.items() if key not in env}

    def value(self, container, variable, known):
        if "valueFrom" not in variable:
            return expanded(variable.get("value", ""), known)
        ((kind, source),) = variable["valueFrom"].items()
        if kind == "secretKeyRef":
            return "s3cr3t"
        if kind == "configMapKeyRef":
            return self.config_maps[source["name"]][source["key"]]
        if kind == "fieldRef":
            label = re.fullmatch(r"metadata\.labels\['(.+)'\]", source["fieldPath"])
            return self.labels.get(label.group(1), "") if label else {
                "metadata.name": self.name, "metadata.namespace": self.namespace, "metadata.uid": UID,
                "status.podIP": "10.244.1.17", "spec.nodeName": "node-7.example"}[source["fieldPath"]]
        limits, requests = self.limits(container)
        where, what = source["resource"].split(".")
        # what is not limited has all of the node
        quantity = {"limits": limits, "requests": requests}[where].get(
            what, {"limits": {"cpu": "8", "memory": "32Gi"}, "requests": {"cpu": "0", "memory": "0"}}[where][what])
        return str(-(-milli(quantity) // 1000) if what == "cpu" else in_bytes(quantity))
