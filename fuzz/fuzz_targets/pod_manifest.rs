//! A pod's manifest: whatever the text, it is read or refused, and a policy that is made of it is one that the agent takes, denies what it
//! does not name, and stands in the manifest when it is written there.
#![no_main]

use kata_cc_policy::AgentPolicy;
use kata_cc_policy::annotate::annotate;
use kata_cc_policy::generate::{
    ImageConfig, ImageInfo, ImageResolver, ResolveError, Settings, data_of, generate,
};
use kata_cc_policy::manifest::Manifest;

/// Every image is the same one.
struct Any;

impl ImageResolver for Any {
    fn resolve(&self, _: &str) -> Result<ImageInfo, ResolveError> {
        let config = ImageConfig {
            cmd: vec!["x".to_owned()],
            env: vec!["PATH=/bin".to_owned()],
            ..ImageConfig::default()
        };
        Ok(ImageInfo { digest: format!("sha256:{}", "0".repeat(64)), config })
    }
}

libfuzzer_sys::fuzz_target!(|text: &str| {
    let Ok(manifest) = Manifest::read(text) else { return };
    for workload in manifest.workloads.iter().take(2) {
        let Ok(made) = generate(&manifest, workload, &Any, &Settings::default()) else { continue };
        assert_eq!(data_of(&made.text).as_ref(), Some(&made.data), "the policy says what it was made to say");
        let mut policy = AgentPolicy::new("policy.rego", &made.text).expect("it compiles");
        for request in ["ExecProcessRequest", "SetPolicyRequest", "CreateContainerRequest"] {
            assert!(policy.check(request, &serde_json::json!({"container_id": "x"})).is_err());
        }
        if let Ok(written) = annotate(text, workload, "a.b/c", "x+/=") {
            let again = Manifest::read(&written).expect("what was written is read");
            assert!(
                again.workloads.iter().any(|one| one.annotations.get("a.b/c").is_some_and(|v| v == "x+/="))
            );
        }
    }
});
