//! What a host may try: each changes one thing of a request that is allowed, and names the rule that has to refuse it.

use serde_json::{Value, json};

use super::runtime::Asked;

/// A change: its name, the rule that refuses it, the request it is made to.
pub struct Mutation {
    pub name: String,
    pub rule: &'static str,
    pub request: &'static str,
    pub input: Value,
}

const OCI: &str = "/OCI";

/// All changes to what is asked about a container, of which `data` is the entry in the policy.
pub fn of(asked: &Asked, data: &Value, pod: &Value) -> Vec<Mutation> {
    let mut all = Vec::new();
    let mut add = |name: &str, rule: &'static str, change: &dyn Fn(&mut Value) -> Option<()>| {
        let mut input = asked.create.clone();
        if change(&mut input).is_some() && input != asked.create {
            all.push(Mutation { name: name.to_owned(), rule, request: "CreateContainerRequest", input });
        }
    };
    whole(&mut add, data, pod);
    mounts(&mut add, data);
    if asked.image.is_some() {
        process(&mut add, data);
    }
    if let Some(image) = &asked.image {
        let mut add = |name: &str, rule: &'static str, change: &dyn Fn(&mut Value) -> Option<()>| {
            let mut input = image.clone();
            if change(&mut input).is_some() {
                all.push(Mutation { name: name.to_owned(), rule, request: "RunImageRequest", input });
            }
        };
        add("another manifest", "image digest", &|v| {
            v["image"]["manifest_digest"] = format!("sha256:{}", "f".repeat(64)).into();
            Some(())
        });
        add("another group of the user", "groups of the image", &|v| {
            v["process"]["User"]["AdditionalGids"].as_array_mut()?.push(31_337.into());
            Some(())
        });
        add("a container that was not allowed", "containers of the pod", &|v| {
            v["container_id"] = "x".into();
            Some(())
        });
    }
    all
}

type Add<'a> = &'a mut dyn FnMut(&str, &'static str, &dyn Fn(&mut Value) -> Option<()>);

fn push(value: &mut Value, place: &str, item: Value) -> Option<()> {
    value.pointer_mut(&format!("{OCI}{place}"))?.as_array_mut()?.push(item);
    Some(())
}

fn set(value: &mut Value, place: &str, item: Value) -> Option<()> {
    *value.pointer_mut(&format!("{OCI}{place}"))? = item;
    Some(())
}

fn process(add: Add<'_>, data: &Value) {
    add("another program", "command", &|v| set(v, "/Process/Args/0", "/bin/sh".into()));
    add("one argument more", "command", &|v| push(v, "/Process/Args", "--debug".into()));
    add("no program", "command", &|v| set(v, "/Process/Args", json!([])));
    add("one argument less", "command", &|v| {
        v.pointer_mut("/OCI/Process/Args")?.as_array_mut()?.pop();
        Some(())
    });
    for entry in [
        "LD_PRELOAD=/tmp/x.so",
        "PATH=/tmp",
        "BASH_ENV=/tmp/x",
        "X_PORT=$(id)",
        "LD_X_SERVICE_PORT=1",
        "HOSTNAME=a/b",
        "=",
        "",
    ] {
        let owned = data["env"].as_object().is_some_and(|env| env.contains_key(entry));
        if !owned {
            add(&format!("variable {entry:?}"), "environment", &|v| push(v, "/Process/Env", entry.into()));
        }
    }
    if let Some(entry) = data["env"].as_object().and_then(|env| env.keys().next()) {
        add("a variable left out", "environment is whole", &|v| {
            let env = v.pointer_mut("/OCI/Process/Env")?.as_array_mut()?;
            env.retain(|e| e.as_str() != Some(entry));
            Some(())
        });
        add("a variable changed", "environment", &|v| {
            let env = v.pointer_mut("/OCI/Process/Env")?.as_array_mut()?;
            *env.iter_mut().find(|e| e.as_str() == Some(entry))? = format!("{entry}x").into();
            Some(())
        });
    }
    if let Some(entry) = data["env_overridden"][0].as_str() {
        add("the image's variable last", "environment", &|v| push(v, "/Process/Env", entry.into()));
    }
    if data["terminal"] == false {
        add("a terminal", "terminal", &|v| set(v, "/Process/Terminal", true.into()));
    }
    add("another folder", "folder", &|v| set(v, "/Process/Cwd", "/tmp".into()));
    if data["user"]["uid"] != Value::Null {
        add("another user", "user", &|v| set(v, "/Process/User/UID", 31_337.into()));
    }
    if data["user"]["gid"] != Value::Null {
        add("another group", "user", &|v| set(v, "/Process/User/GID", 31_337.into()));
    }
    if data["user"]["gid"].as_u64().is_some_and(|gid| gid != 0) && data["user"]["gid_or_zero"] != true {
        add("group 0", "user", &|v| set(v, "/Process/User/GID", 0.into()));
    }
    add("a user by name", "users by number", &|v| set(v, "/Process/User/Username", "root".into()));
    if data["privileged"] == false {
        for set_name in ["Bounding", "Effective", "Inheritable", "Permitted"] {
            add(&format!("capability in {set_name}"), "capabilities", &|v| {
                push(v, &format!("/Process/Capabilities/{set_name}"), "CAP_SYS_MODULE".into())
            });
        }
        add("a capability with its beginning twice", "capabilities", &|v| {
            push(v, "/Process/Capabilities/Bounding", "CAP_CAP_SYS_MODULE".into())
        });
        add("an ambient capability", "capabilities", &|v| {
            push(v, "/Process/Capabilities/Ambient", "CAP_CHOWN".into())
        });
    }
    if data["no_new_privileges"] == true {
        add("new privileges", "no new privileges", &|v| set(v, "/Process/NoNewPrivileges", false.into()));
    }
    if data["read_only_root"] == true {
        add("a writable root", "read-only root", &|v| set(v, "/Root/Readonly", false.into()));
    }
    add("another image", "image", &|v| {
        *v.pointer_mut("/storages/0/source")? = "docker.io/evil/image:1".into();
        Some(())
    });
    add("the image by another tag", "image", &|v| {
        let source = v.pointer_mut("/storages/0/source")?;
        *source = format!("{}x", source.as_str()?).into();
        Some(())
    });
    add("another container's name", "containers of the pod", &|v| {
        *v.pointer_mut("/OCI/Annotations/io.kubernetes.cri.container-name")? = "nobody".into();
        Some(())
    });
}

fn whole(add: Add<'_>, data: &Value, pod: &Value) {
    add("a device", "devices", &|v| {
        push(v, "/Linux/Devices", json!({"Path": "/dev/sev-guest", "Type": "c", "Major": 10, "Minor": 1}))
    });
    add("a device of the host", "devices", &|v| {
        let device = json!({"id": "", "type_": "blk", "vm_path": "/dev/vdz", "container_path": "/dev/x", "options": []});
        v["devices"].as_array_mut()?.push(device);
        Some(())
    });
    if data["privileged"] == false && data["devices"].as_array().is_none_or(Vec::is_empty) {
        add("a device rule", "device rules", &|v| {
            push(
                v,
                "/Linux/Resources/Devices",
                json!({"Allow": true, "Type": "b", "Major": -1, "Minor": -1, "Access": "rwm"}),
            )
        });
    }
    add("a hook", "no hooks", &|v| {
        set(
            v,
            "/Hooks",
            json!({"Prestart": [{"Path": "/x", "Args": [], "Env": [], "Timeout": 0}], "Poststart": []}),
        )
    });
    add("a kernel parameter", "kernel parameters", &|v| {
        v.pointer_mut("/OCI/Linux/Sysctl")?
            .as_object_mut()?
            .insert("kernel.core_pattern".to_owned(), "|/x".into());
        Some(())
    });
    if data["unmasked"] == false {
        add("nothing masked", "masked paths", &|v| set(v, "/Linux/MaskedPaths", json!([])));
        add("nothing read-only", "read-only paths", &|v| set(v, "/Linux/ReadonlyPaths", json!([])));
    }
    add("a seccomp answer that lies", "seccomp answers truly", &|v| {
        push(
            v,
            "/Linux/Seccomp/Syscalls",
            json!({"Names": ["setuid"], "Action": "SCMP_ACT_ERRNO", "Args": [], "errnoret": 0}),
        )
    });
    add("another root", "root in the bundle", &|v| set(v, "/Root/Path", "/".into()));
    add("no image", "root is the pulled image", &|v| {
        v["storages"].as_array_mut()?.retain(|s| s["driver"] != "image_guest_pull");
        Some(())
    });
    add("a second image", "root is the pulled image", &|v| {
        let mut second = v["storages"][0].clone();
        second["mount_point"] = "/run/kata-containers/x/rootfs".into();
        v["storages"].as_array_mut()?.push(second);
        Some(())
    });
    add("a disk of the host", "storages", &|v| {
        let disk = json!({"driver": "mmioblk", "driver_options": [], "source": "/dev/vdc", "fstype": "ext4", "options": [],
            "mount_point": "/run/kata-containers/sandbox/evil", "fs_group": null, "shared": false});
        v["storages"].as_array_mut()?.push(disk);
        Some(())
    });
    add("a shared mount", "no shared mounts", &|v| {
        v["shared_mounts"]
            .as_array_mut()?
            .push(json!({"name": "x", "src_ctr": "a", "src_path": "/", "dst_ctr": "b", "dst_path": "/"}));
        Some(())
    });
    add("a user of the guest's own files", "users by number", &|v| {
        v["string_user"] = json!({"uid": "root", "gid": "", "additionalGids": []});
        Some(())
    });
    add("a namespace of the guest", "namespaces", &|v| {
        set(v, "/Linux/Namespaces/0/Path", "/proc/1/ns/pid".into())
    });
    add("no namespace of mounts", "namespaces", &|v| set(v, "/Linux/Namespaces", json!([])));
    if pod["user_namespace"] == false {
        add("a mapping of users", "user namespace", &|v| {
            push(v, "/Linux/UIDMappings", json!({"HostID": 0, "ContainerID": 0, "Size": 1}))
        });
    }
    add("another sandbox", "containers of the sandbox", &|v| {
        *v.pointer_mut("/OCI/Annotations/io.kubernetes.cri.sandbox-id")? = "x".into();
        Some(())
    });
    add("another host name", "host name", &|v| set(v, "/Hostname", "evil/host".into()));
    add("output by another way", "streams", &|v| {
        v["stdout_port"] = 1030.into();
        Some(())
    });
    add("mounts that spread", "propagation", &|v| set(v, "/Linux/RootfsPropagation", "rshared".into()));
}

fn mounts(add: Add<'_>, data: &Value) {
    let evil = |destination: &str, source: &str, kind: &str, options: Value| json!({"destination": destination, "source": source, "type_": kind, "options": options});
    let shared = "/run/kata-containers/shared/containers/evil";
    for (name, mount) in [
        ("over a program", evil("/usr/bin/env", shared, "bind", json!(["rbind", "ro"]))),
        ("of the guest", evil("/mnt", "/", "bind", json!(["rbind", "rw"]))),
        (
            "out of the shared folder",
            evil("/etc/hosts2", &format!("{shared}/../../x"), "bind", json!(["rbind"])),
        ),
        ("hidden as memory", evil("/usr/lib", "tmpfs", "tmpfs", json!(["ro"]))),
        ("of a disk", evil("/mnt", "/dev/vda", "ext4", json!([]))),
        (
            "of the agent's sockets",
            evil("/run/kata-containers", "/run/kata-containers", "bind", json!(["rbind"])),
        ),
    ] {
        add(&format!("a mount {name}"), "mounts", &|v| push(v, "/Mounts", mount.clone()));
    }
    for (name, source) in [("the host's file", shared), ("a folder of the guest", "/run")] {
        let mount = evil("/dev/shm", source, "bind", json!(["rbind", "rw"]));
        add(&format!("{name} over shared memory"), "mounts", &|v| push(v, "/Mounts", mount.clone()));
    }
    let mut places: Vec<&str> =
        data["mounts"].as_object().into_iter().flatten().map(|(path, _)| path.as_str()).collect();
    places.extend(["/etc/resolv.conf", "/sys"]);
    for path in places {
        add(&format!("a second mount at {path}"), "one mount at a place", &|v| {
            let mounts = v.pointer_mut("/OCI/Mounts")?.as_array_mut()?;
            let at = |mount: &&Value| {
                mount["destination"].as_str().map(|at| at.trim_end_matches('/')) == Some(path)
            };
            let mut second = mounts.iter().find(at)?.clone();
            second["destination"] = format!("{path}/").into();
            mounts.push(second);
            Some(())
        });
    }
    add("a hosts file of the guest", "mounts", &|v| {
        change_mount(v, "/etc/hosts", &|m| m["source"] = "/run/kata-containers/image".into())
    });
    add("two options in one", "mounts", &|v| {
        change_mount(v, "/dev", &|m| m["options"] = json!(["nosuid,bind"]))
    });
    if data["privileged"] == false && !(data["kind"] == "sandbox" && data["unmasked"] == true) {
        add("a writable /sys", "mounts", &|v| {
            change_mount(v, "/sys", &|m| m["options"] = json!(["nosuid", "rw"]))
        });
    }
    for (path, mount) in data["mounts"].as_object().into_iter().flatten() {
        let source = "/run/kata-containers/shared/containers/../../../etc";
        add(&format!("another source of {path}"), "mounts", &|v| {
            change_mount(v, path, &|m| m["source"] = source.into())
        });
        if mount["read_only"] == true {
            add(&format!("{path} writable"), "mounts", &|v| {
                change_mount(v, path, &|m| m["options"] = json!(["rbind", "rw"]))
            });
        }
        if mount["required"] == true {
            add(&format!("{path} left out"), "mounts are whole", &|v| {
                v.pointer_mut("/OCI/Mounts")?
                    .as_array_mut()?
                    .retain(|m| m["destination"].as_str().map(|at| at.trim_end_matches('/')) != Some(path));
                Some(())
            });
        }
        if mount["kind"] == "scratch" && mount["sub_path"] != true {
            let file = "/run/kata-containers/shared/containers/c-0000000000000000-secret";
            add(&format!("files of the host for {path}"), "mounts", &|v| {
                change_mount(v, path, &|m| m["source"] = file.into())
            });
        }
    }
}

fn change_mount(value: &mut Value, path: &str, change: &dyn Fn(&mut Value)) -> Option<()> {
    let mounts = value.pointer_mut("/OCI/Mounts")?.as_array_mut()?;
    let at =
        |mount: &&mut Value| mount["destination"].as_str().map(|at| at.trim_end_matches('/')) == Some(path);
    change(mounts.iter_mut().find(at)?);
    Some(())
}
