//! Bundles in a real registry (Debian's docker-registry), signed so that cosign and our images' verification accept them.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test may panic")]

mod common;

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{bundle, folder, key_pair, write};
use kata_cc_image::{Registry, RegistryConfig};
use kata_cc_policy_bundle::sign::Signer;
use kata_cc_policy_bundle::source::signed_by;
use kata_cc_policy_bundle::{Source, artifact, sha256};

struct Running {
    host: String,
    child: Child,
    _folder: tempfile::TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A registry on loopback; none where the program is not installed.
fn registry() -> Option<Running> {
    if !std::path::Path::new("/usr/bin/docker-registry").exists() {
        eprintln!("skipped: docker-registry is not installed");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n",
        folder.path().join("storage").display()
    );
    write(folder.path(), "registry.yml", &config);
    let child = Command::new("/usr/bin/docker-registry")
        .arg("serve")
        .arg(folder.path().join("registry.yml"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let running = Running { host: format!("127.0.0.1:{port}"), child, _folder: folder };
    for _ in 0..600 {
        if std::net::TcpStream::connect(&running.host).is_ok() {
            return Some(running);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("the registry does not listen");
}

fn client(host: &str) -> Registry {
    let config = RegistryConfig { insecure_registries: vec![host.to_owned()], ..RegistryConfig::default() };
    Registry::new(config).unwrap()
}

#[tokio::test]
async fn a_bundle_is_pushed_signed_and_followed() {
    let Some(running) = registry() else { return };
    let (folder, keys) = (folder(), tempfile::tempdir().unwrap());
    let registry = client(&running.host);
    let (private, public) = key_pair(keys.path(), "one");
    let (other_private, other_public) = key_pair(keys.path(), "two");
    let reference = format!("{}/team/policy:main", running.host);
    let good = bundle(folder.path());
    let digest = artifact::push(&registry, &reference, &good, Some("c0ffee")).await.unwrap();
    assert_eq!(artifact::push(&registry, &reference, &good, Some("c0ffee")).await.unwrap(), digest);
    let layout = keys.path().join("layout");
    assert_eq!(artifact::write_layout(&good, &layout, Some("c0ffee")).unwrap(), digest);
    assert!(artifact::write_layout(&good, &layout, None).unwrap_err().to_string().contains("not empty"));
    let blob = std::fs::read(layout.join("blobs/sha256").join(good.digest())).unwrap();
    assert_eq!(sha256(&blob), good.digest());

    let source = |key: &std::path::Path| Source::Reference {
        reference: reference.clone(),
        signed: std::sync::Arc::new(signed_by(&std::fs::read(key).unwrap()).unwrap()),
        registry: std::sync::Arc::new(client(&running.host)),
    };
    let unsigned = source(&public).fetch().await.unwrap_err().to_string();
    assert!(unsigned.contains("is not good") && unsigned.contains("sha256-"), "{unsigned}");
    let sign = async |key: &std::path::Path| {
        let signer = Signer::from_pem(&std::fs::read(key).unwrap()).unwrap();
        artifact::sign(&registry, &reference, &signer).await.unwrap()
    };
    assert_eq!(sign(&other_private).await, digest);
    let stranger = source(&public).fetch().await.unwrap_err().to_string();
    assert!(stranger.contains("is not good"), "{stranger}");
    // A second signature beside the first: both keys vouch for it.
    assert_eq!(sign(&private).await, digest);
    for key in [&public, &other_public] {
        let fetched = source(key).fetch().await.unwrap();
        assert_eq!(fetched.bundle.digest(), good.digest());
        assert_eq!(fetched.revision.as_deref(), Some("c0ffee"));
    }
    cosign_accepts(&public, &reference);
    cosign_accepts(&other_public, &reference);

    // Another bundle under the tag: its digest has no signature.
    write(folder.path(), "reference-values/nodes.json", r#"{"values": {"launch": ["cd"]}}"#);
    artifact::push(&registry, &reference, &bundle(folder.path()), None).await.unwrap();
    assert!(source(&public).fetch().await.is_err());

    // A signature that was made for another repository.
    let elsewhere = format!("{}/other/policy:main", running.host);
    assert_eq!(artifact::push(&registry, &elsewhere, &good, Some("c0ffee")).await.unwrap(), digest);
    let copied = Command::new("skopeo")
        .args(["copy", "--src-tls-verify=false", "--dest-tls-verify=false"])
        .arg(format!("docker://{}/team/policy:{}.sig", running.host, digest.replace(':', "-")))
        .arg(format!("docker://{}/other/policy:{}.sig", running.host, digest.replace(':', "-")))
        .output()
        .unwrap();
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    let moved =
        artifact::pull(&registry, &elsewhere, Some(&signed_by(&std::fs::read(&public).unwrap()).unwrap()))
            .await;
    let moved = moved.unwrap_err().to_string();
    assert!(moved.contains("is not good") && moved.contains("team/policy"), "{moved}");
    assert!(artifact::pull(&registry, &elsewhere, None).await.is_ok());
}

/// cosign itself, where it is installed.
fn cosign_accepts(key: &std::path::Path, reference: &str) {
    let verify = Command::new("cosign")
        .args(["verify", "--insecure-ignore-tlog=true", "--allow-http-registry", "--key"])
        .arg(key)
        .arg(reference)
        .output();
    match verify {
        Err(_) => eprintln!("skipped: cosign is not installed"),
        Ok(done) => assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr)),
    }
}

#[tokio::test]
async fn what_is_no_bundle_is_refused() {
    let Some(running) = registry() else { return };
    let registry = client(&running.host);
    let reference = format!("{}/image:1", running.host);
    let at = kata_cc_image::parse_reference(&reference).unwrap();
    let put = async |manifest: &str| {
        registry.push_bytes(&at, b"{}").await.unwrap();
        let kind = "application/vnd.oci.image.manifest.v1+json";
        registry.push_manifest(&at, manifest.as_bytes().to_vec(), kind).await.unwrap();
        artifact::pull(&registry, &reference, None).await.unwrap_err().to_string()
    };
    let empty = format!(
        r#"{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:{}","size":2}}"#,
        sha256(b"{}")
    );
    let manifest = |kind: &str, layers: &str| {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"{kind},"config":{empty},"layers":[{layers}]}}"#
        )
    };
    let image = put(&manifest("", &empty)).await;
    assert!(image.contains("no policy bundle"), "{image}");
    let ours = format!(r#","artifactType":"{}""#, artifact::ARTIFACT_TYPE);
    assert!(put(&manifest(&ours, "")).await.contains("one layer"));
    assert!(put(&manifest(&ours, &empty)).await.contains("its layer is no"));
    let layer = empty.replace("application/vnd.oci.empty.v1+json", artifact::LAYER);
    let broken = put(&manifest(&ours, &layer)).await;
    assert!(broken.contains("no policy bundle") || broken.contains("no kata-cc-policy.yaml"), "{broken}");
    let gone = artifact::pull(&registry, &format!("{}/gone:1", running.host), None).await.unwrap_err();
    assert!(gone.to_string().contains("has no"), "{gone}");
}
