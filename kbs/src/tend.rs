//! Following other replicas: whoever changes policies of either kind, reference values or keys leaves one mark in the store, with the
//! change. It is looked at every few seconds; when it is another, everything that is kept in memory is read again.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use crate::state::Kbs;

/// How long what another replica changed may be unknown here.
const TEND: Duration = Duration::from_secs(2);

/// Follows other replicas until it is dropped.
pub(crate) async fn tend(kbs: Arc<Kbs>) {
    // Of nothing yet: what was set between the opening of the store and now is taken the first time.
    let mut followed = 0;
    loop {
        tokio::time::sleep(TEND).await;
        follow(&kbs, &mut followed).await;
    }
}

/// One look. `followed` is the number of the reading of the store that was taken into use last.
async fn follow(kbs: &Kbs, followed: &mut u64) {
    if let Err(why) = kbs.service.tend().await {
        warn!(%why, "attestation policies, reference values or keys of tokens cannot be renewed");
    }
    let readings = kbs.service.readings();
    if readings == *followed {
        return;
    }
    match kbs.policy.refresh().await {
        Ok(()) => *followed = readings,
        // Tried again at the next look.
        Err(why) => {
            warn!(%why, "the stored resource policy cannot be taken into use, the one before stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::config::Config;
    use crate::test_utils;

    #[tokio::test]
    async fn one_mark_tells_of_policies_of_both_kinds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kbs.toml");
        std::fs::write(&path, "[http_server]\ninsecure_http = true\n").unwrap();
        let config = Config::read(&path).unwrap();
        let (one, other) = (Kbs::new(&config).await.unwrap(), Kbs::new(&config).await.unwrap());
        let allows = async || {
            let path = ["default", "a", "b"].map(str::to_owned);
            other.policy.decide(&json!({}).into(), "resource", &path, &BTreeMap::new()).await.unwrap().allow
        };
        let mut followed = 0;
        follow(&other, &mut followed).await;
        let at_rest = followed;
        assert!(!allows().await && at_rest > 0);
        test_utils::set_policy(&one, test_utils::OPEN_POLICY).await;
        assert!(!allows().await, "not before it looks");
        // The mark is looked at once a second.
        let mut looks = 0;
        while !allows().await {
            assert!(looks < 600, "the other replica did not follow");
            tokio::time::sleep(Duration::from_millis(100)).await;
            follow(&other, &mut followed).await;
            looks += 1;
        }
        assert_eq!(followed, at_rest + 1, "one reading for the one change");
        // Nothing was changed: nothing is read.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        follow(&other, &mut followed).await;
        assert_eq!(followed, at_rest + 1);
        let text = "package policy\ntrust_claims := {\"hardware\": 2}";
        one.service.set_policy_by("mine_cpu", text, "anna").await.unwrap();
        tokio::time::sleep(Duration::from_millis(1100)).await;
        follow(&other, &mut followed).await;
        assert_eq!(followed, at_rest + 2);
        assert!(other.service.policy_ids().await.contains(&"mine_cpu".to_owned()));
    }
}
