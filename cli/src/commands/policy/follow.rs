//! `kata-cc policy status|rollback`: what a service decides by against what a bundle says, and holding an earlier bundle in force.
//!
//! Exit codes of `status`: 0 they are the same; 1 they differ, or the source that is followed fails; 2 one of them cannot be read.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kata_cc_kbs_client::{AdminClient, AuditedService};
use kata_cc_policy_bundle::layout::Part;
use kata_cc_policy_bundle::{Bundle, sha256};
use serde::Serialize;
use serde_json::{Value, json};

use super::super::audit::Service;
use super::super::block_on;
use super::super::broker::BrokerArguments;
use super::super::image::RegistryArguments;
use super::bundle::load;
use crate::output::{Output, Tone, printable};

/// Exit code of what cannot be read or reached.
const UNREADABLE: u8 = 2;

#[derive(Debug, clap::Args)]
pub(crate) struct StatusArguments {
    /// Bundle to compare with: a folder, a file or a registry reference; without it only the service's own words.
    target: Option<String>,
    /// Public key (PEM) that the bundle must be signed by.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Count what the service has and the bundle does not name as a difference.
    #[arg(long)]
    strict: bool,
    /// What --kbs is the address of.
    #[arg(long, value_enum, default_value_t = Service::KeyBroker)]
    service: Service,
    #[command(flatten)]
    broker: BrokerArguments,
    #[command(flatten)]
    registry: RegistryArguments,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RollbackArguments {
    /// Digest of the bundle to go back to, or how it begins; the one before the current without it.
    #[arg(long, value_name = "DIGEST", conflicts_with = "resume")]
    to: Option<String>,
    /// Let the source decide again.
    #[arg(long)]
    resume: bool,
    /// What --kbs is the address of.
    #[arg(long, value_enum, default_value_t = Service::KeyBroker)]
    service: Service,
    #[command(flatten)]
    broker: BrokerArguments,
}

/// A difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Difference {
    /// What differs.
    what: String,
    /// How, in words.
    message: String,
    /// Whether the bundle says nothing about it.
    extra: bool,
}

/// What runs.
#[derive(Debug, Default)]
struct Running {
    source: Value,
    resource_policy: Option<String>,
    /// Digest by id, of those that are not built in.
    policies: BTreeMap<String, String>,
    /// Record by name.
    references: BTreeMap<String, Value>,
}

async fn running(client: &AdminClient, of: AuditedService) -> anyhow::Result<Running> {
    let text = |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let policies = client.attestation(of, "policies").await?;
    let policies = policies["policies"].as_array().into_iter().flatten();
    let policies = policies.filter(|one| one["default"] != json!(true));
    let references = client.attestation(of, "reference-values?expired=true").await?;
    let references = references["reference_values"].as_array().into_iter().flatten();
    Ok(Running {
        source: client.attestation(of, "policy-source").await?,
        resource_policy: match of {
            AuditedService::KeyBroker => Some(client.resource_policy().await?.policy),
            AuditedService::AttestationService => None,
        },
        policies: policies.map(|one| (text(one, "id"), text(one, "digest"))).collect(),
        references: references.map(|one| (text(one, "name"), one.clone())).collect(),
    })
}

fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

/// What differs, what is set besides last.
fn compare(bundle: &Bundle, running: &Running) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut add = |what: String, message: String, extra| found.push(Difference { what, message, extra });
    let in_force = &running.source["in_force"];
    if running.source["followed"] == json!(true) && in_force["digest"] != json!(bundle.digest()) {
        let runs = in_force["digest"].as_str().map_or("none".to_owned(), |digest| {
            format!("{} ({})", short(digest), in_force["title"].as_str().unwrap_or_default())
        });
        let message = format!(
            "in force is {runs}, given is {} ({})",
            short(bundle.digest()),
            bundle.manifest().title()
        );
        add("policy bundle".to_owned(), message, false);
    }
    if let (Some(text), Some(runs)) = (bundle.resource_policy(), &running.resource_policy)
        && text != runs
    {
        let (runs, text) = (sha256(runs.as_bytes()), sha256(text.as_bytes()));
        add(
            "resource policy".to_owned(),
            format!("runs {}, the bundle has {}", short(&runs), short(&text)),
            false,
        );
    }
    for (id, text) in bundle.policies(Part::Attestation) {
        let wanted = sha256(text.as_bytes());
        let message = match running.policies.get(id) {
            None => "is not set".to_owned(),
            Some(runs) if *runs != wanted => {
                format!("runs {}, the bundle has {}", short(runs), short(&wanted))
            }
            Some(_) => continue,
        };
        add(format!("attestation policy {id}"), message, false);
    }
    let mut wanted = BTreeMap::new();
    for file in bundle.references().values() {
        wanted
            .extend(file.values.iter().map(|(name, value)| (name.clone(), (value, file.expires.as_deref()))));
    }
    for (name, (value, expires)) in &wanted {
        let message = match running.references.get(name) {
            None => "is not set".to_owned(),
            Some(runs) if runs["value"] != **value => format!("is {}, the bundle has {value}", runs["value"]),
            Some(runs) if runs["expired"] == json!(true) => {
                format!("has ended ({})", runs["expiration"].as_str().unwrap_or_default())
            }
            Some(runs) if runs["expiration"].as_str().is_some() != expires.is_some() => {
                let ends =
                    |end: Option<&str>| end.map_or("never ends".to_owned(), |end| format!("ends {end}"));
                format!("{}, in the bundle it {}", ends(runs["expiration"].as_str()), ends(*expires))
            }
            Some(_) => continue,
        };
        add(format!("reference value {name}"), message, false);
    }
    for id in
        running.policies.keys().filter(|id| bundle.policies(Part::Attestation).all(|(other, _)| other != *id))
    {
        add(format!("attestation policy {id}"), "is set, the bundle does not name it".to_owned(), true);
    }
    for (name, runs) in running.references.iter().filter(|(name, _)| !wanted.contains_key(*name)) {
        let by = runs["registered_by"].as_str().unwrap_or_default();
        add(format!("reference value {name}"), format!("is set by {by}, the bundle does not name it"), true);
    }
    found
}

/// Run `status`.
pub(super) fn status(arguments: &StatusArguments, output: &Output) -> anyhow::Result<u8> {
    let gathered = || -> anyhow::Result<(Option<Bundle>, Running)> {
        let load = |target: &String| load(target, arguments.key.as_deref(), &arguments.registry);
        let bundle = arguments.target.as_ref().map(load).transpose()?;
        let client = arguments.broker.client()?;
        Ok((bundle, block_on(running(&client, arguments.service.into()))?))
    };
    let (bundle, running) = match gathered() {
        Ok(gathered) => gathered,
        Err(error) => {
            output.error(&error);
            return Ok(UNREADABLE);
        }
    };
    let differences = bundle.as_ref().map(|bundle| compare(bundle, &running)).unwrap_or_default();
    let failing = !running.source["last_error"].is_null();
    let drift = failing || differences.iter().any(|one| arguments.strict || !one.extra);
    if output.json {
        output
            .document(&json!({"same": !drift, "differences": differences, "policy_source": running.source,
            "bundle": bundle.as_ref().map(Bundle::digest)}))?;
        return Ok(drift.into());
    }
    output.text(&describe(&running.source))?;
    for one in &differences {
        let counts = arguments.strict || !one.extra;
        let word =
            if counts { output.paint(Tone::Bad, "differs") } else { output.paint(Tone::Quiet, "besides") };
        output.text(&format!("{word} {}\n", printable(&format!("{} {}", one.what, one.message))))?;
    }
    if let (Some(bundle), false) = (&bundle, drift) {
        output.text(&format!(
            "{} {}\n",
            output.paint(Tone::Good, "same   "),
            printable(&bundle.manifest().title())
        ))?;
    }
    Ok(drift.into())
}

/// The service's own words on its source.
fn describe(source: &Value) -> String {
    if source["followed"] != json!(true) {
        return "no policy source is followed\n".to_owned();
    }
    let text = |value: &Value| printable(value.as_str().unwrap_or("-"));
    let mut lines = vec![
        format!(
            "source    {}{}",
            text(&source["source"]),
            if source["signed"] == json!(true) { ", signed" } else { ", not signed" }
        ),
        format!("condition {}", text(&source["condition"])),
    ];
    let one = &source["in_force"];
    if one.is_object() {
        let revision =
            one["revision"].as_str().map_or(String::new(), |text| format!(" revision {}", printable(text)));
        lines.push(format!(
            "in force  {} {}{revision}, since {}",
            text(&one["title"]),
            text(&one["digest"]),
            text(&one["applied_at"])
        ));
    }
    if let Some(why) = source["last_error"].as_str() {
        lines.push(format!("failing   since {}: {}", text(&source["failing_since"]), printable(why)));
    }
    for one in source["history"].as_array().into_iter().flatten() {
        lines.push(format!(
            "kept      {} {}, {}",
            text(&one["digest"]),
            text(&one["title"]),
            text(&one["applied_at"])
        ));
    }
    lines.join("\n") + "\n"
}

/// Run `rollback`.
pub(super) fn rollback(arguments: &RollbackArguments, output: &Output) -> anyhow::Result<u8> {
    let client = arguments.broker.client()?;
    let source = block_on(async {
        Ok(match arguments.resume {
            true => client.resume_policy_source(arguments.service.into()).await?,
            false => client.pin_policy_bundle(arguments.service.into(), arguments.to.as_deref()).await?,
        })
    })?;
    if output.json {
        output.document(&source)?;
    } else {
        output.text(&describe(&source))?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle() -> Bundle {
        let files = [
            ("kata-cc-policy.yaml", "format: 1\nname: shop\n"),
            ("attestation/default_cpu.rego", "package policy\n"),
            ("resource/policy.rego", "package policy\n"),
            ("reference-values/a.json", r#"{"values": {"svn": ["1"]}}"#),
        ];
        let files = files.map(|(path, text)| (path.to_owned(), text.as_bytes().to_vec()));
        Bundle::from_files(files.into()).expect("a bundle")
    }

    fn same() -> Running {
        Running {
            source: json!({"followed": true, "in_force": {"digest": bundle().digest(), "title": "shop"}}),
            resource_policy: Some("package policy\n".to_owned()),
            policies: [("default_cpu".to_owned(), sha256(b"package policy\n"))].into(),
            references: [("svn".to_owned(), json!({"value": ["1"], "expired": false}))].into(),
        }
    }

    #[test]
    fn differences_are_told_in_words() {
        assert_eq!(compare(&bundle(), &same()), []);
        let told = |change: &dyn Fn(&mut Running)| {
            let mut running = same();
            change(&mut running);
            let found = compare(&bundle(), &running);
            found
                .iter()
                .map(|one| format!("{} {}{}", one.what, one.message, if one.extra { "!" } else { "" }))
                .collect::<Vec<_>>()
                .join("; ")
        };
        let digest = sha256(b"package policy\n");
        let has = format!("the bundle has {}", short(&digest));
        for (change, expected) in [
            (
                &(|r: &mut Running| r.resource_policy = Some("x".to_owned())) as &dyn Fn(&mut Running),
                format!("resource policy runs 2d711642b726, {has}"),
            ),
            (&|r| r.policies.clear(), "attestation policy default_cpu is not set".to_owned()),
            (
                &|r| drop(r.policies.insert("default_cpu".to_owned(), "abc".to_owned())),
                format!("attestation policy default_cpu runs abc, {has}"),
            ),
            (&|r| r.references.clear(), "reference value svn is not set".to_owned()),
        ] {
            assert_eq!(told(change), expected);
        }
        let svn =
            |value: Value| move |r: &mut Running| drop(r.references.insert("svn".to_owned(), value.clone()));
        assert_eq!(told(&svn(json!({"value": "2"}))), "reference value svn is \"2\", the bundle has [\"1\"]");
        let ended = json!({"value": ["1"], "expired": true, "expiration": "2020-01-01T00:00:00Z"});
        assert_eq!(told(&svn(ended)), "reference value svn has ended (2020-01-01T00:00:00Z)");
        let ends = json!({"value": ["1"], "expired": false, "expiration": "2090-01-01T00:00:00Z"});
        assert_eq!(
            told(&svn(ends)),
            "reference value svn ends 2090-01-01T00:00:00Z, in the bundle it never ends"
        );
        let more =
            |r: &mut Running| drop(r.references.insert("more".to_owned(), json!({"registered_by": "anna"})));
        assert_eq!(told(&more), "reference value more is set by anna, the bundle does not name it!");
        let other = told(&|r| r.source["in_force"]["digest"] = json!("feed"));
        assert!(other.starts_with("policy bundle in force is feed (shop), given is "), "{other}");
        assert!(told(&|r| r.source["in_force"] = Value::Null).contains("in force is none"));
        assert_eq!(told(&|r| r.source = json!({"followed": false})), "");
    }
}
