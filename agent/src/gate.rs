//! The policy in force, and the questions that it is asked.
//!
//! Kata's are asked by request message. Two more are asked here. `SecureMountRequest`: which encrypted volumes the guest API
//! mounts. `RunImageRequest`: what is about to run is shown to the policy
//! beside what the image itself says, before a key of the image is asked for, and again when it is there. CreateContainer
//! comes before that, and from Kubernetes it always carries a whole process, resolved by the host from
//! what it takes for the image.

use kata_cc_agent_protocol::json;
use kata_cc_policy::{AgentPolicy, Denial};
use protobuf::MessageDyn;
use serde_json::Value;
use tokio::sync::Mutex;

/// Name of the question about images.
const RUN_IMAGE: &str = "RunImageRequest";
/// Name of the question about encrypted volumes.
const SECURE_MOUNT: &str = "SecureMountRequest";

/// Asks the policy before anything is done.
#[derive(Debug)]
pub(crate) struct Gate(Mutex<AgentPolicy>);

impl Gate {
    /// With the policy to start with.
    pub(crate) fn new(policy: AgentPolicy) -> Self {
        Self(Mutex::new(policy))
    }

    /// Puts another policy in its place.
    pub(crate) async fn replace(&self, policy: AgentPolicy) {
        *self.0.lock().await = policy;
    }

    /// Asks about a request.
    pub(crate) async fn check(&self, name: &str, input: &Value) -> Result<(), Denial> {
        told(self.0.lock().await.check(name, input))
    }

    /// Asks about a request by its message.
    pub(crate) async fn check_message(&self, request: &dyn MessageDyn) -> Result<(), Denial> {
        let (name, input) = (request.descriptor_dyn().name().to_owned(), json::message(request));
        self.check(&name, &input).await
    }

    /// Asks about a volume that somebody in the guest wants to have mounted. A policy without such a rule, as one made for Kata is, lets
    /// none be: its author did not think of it.
    pub(crate) async fn check_volume(&self, input: &Value) -> Result<(), Denial> {
        self.check(SECURE_MOUNT, input).await
    }

    /// Asks what may run of an image.
    ///
    /// A policy without such a rule is one made for Kata, where CreateContainerRequest decides on the process alone: its
    /// author has named what may run there, so it is not asked, and not taken for a refusal.
    pub(crate) async fn check_image(&self, input: &Value) -> Result<(), Denial> {
        let mut policy = self.0.lock().await;
        match policy.has_rule(RUN_IMAGE) {
            true => told(policy.check(RUN_IMAGE, input)),
            false => Ok(()),
        }
    }

    /// Asks the same before the image is there. What the policy wants to remember of a consent it remembers when it is asked again
    /// ([`check_image`](Self::check_image)), else it would count one container twice.
    pub(crate) async fn check_image_ahead(&self, input: &Value) -> Result<(), Denial> {
        let mut policy = self.0.lock().await;
        match policy.has_rule(RUN_IMAGE) {
            true => told(policy.would_allow(RUN_IMAGE, input)),
            false => Ok(()),
        }
    }
}

fn told(answer: Result<(), Denial>) -> Result<(), Denial> {
    if let Err(denial) = &answer {
        tracing::warn!(stage = "refused", by = "agent policy", reason = %denial, "request denied");
    }
    answer
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn a_policy_made_for_kata_is_not_asked_about_images() {
        let policy = |text: &str| AgentPolicy::new("t", &format!("package agent_policy\n{text}")).unwrap();
        let gate = Gate::new(policy("default CreateContainerRequest := true"));
        gate.check_image(&json!({})).await.unwrap();
        for text in
            ["default RunImageRequest := false", "import rego.v1\nRunImageRequest if input.image.uid == 7"]
        {
            gate.replace(policy(text)).await;
            assert!(gate.check_image(&json!({"image": {"uid": 8}})).await.is_err(), "{text}");
            assert!(gate.check_image_ahead(&json!({"image": {"uid": 8}})).await.is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_volume_needs_a_rule_that_allows_it() {
        let policy = |text: &str| AgentPolicy::new("t", &format!("package agent_policy\n{text}")).unwrap();
        let gate = Gate::new(policy("default CreateContainerRequest := true"));
        let words = gate.check_volume(&json!({})).await.unwrap_err().to_string();
        assert!(words.contains("SecureMountRequest"), "{words}");
        let rule = "import rego.v1\ndefault SecureMountRequest := false\n\
            SecureMountRequest if input.options.key == \"kbs:///a/b/c\"";
        gate.replace(policy(rule)).await;
        gate.check_volume(&json!({"options": {"key": "kbs:///a/b/c"}})).await.unwrap();
        assert!(gate.check_volume(&json!({"options": {}})).await.is_err());
        for (text, allowed) in [
            (include_str!("../policy/default.rego"), false),
            (include_str!("../policy/exec.rego"), false),
            (include_str!("../policy/plain.rego"), true),
        ] {
            gate.replace(AgentPolicy::new("t", text).unwrap()).await;
            let volume = json!({"mount_point": "/run/kata-containers/sandbox/data", "options": {}});
            assert_eq!(gate.check_volume(&volume).await.is_ok(), allowed, "{text}");
        }
    }

    #[tokio::test]
    async fn what_a_policy_remembers_of_an_image_it_remembers_once() {
        let text = "package agent_policy\nimport rego.v1\ndefault RunImageRequest := {\"allowed\": false}\n\
            RunImageRequest := {\"allowed\": true, \"ops\": [{\"op\": \"add\", \"path\": \"/pstate/ran\", \"value\": true}]} \
            if not data.pstate.ran";
        let gate = Gate::new(AgentPolicy::new("t", text).unwrap());
        let container = json!({});
        gate.check_image_ahead(&container).await.unwrap();
        gate.check_image(&container).await.unwrap();
        assert!(gate.check_image_ahead(&container).await.is_err(), "a second container");
    }
}
