//! The same lines to runc and to this runtime: exit codes, outputs and the words that engines look for.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use serde_json::Value;
use support::{Done, RUNTIME, World, finish};

const RUNC: &str = "runc";

/// Both answers to a line.
fn both(world: &World, line: &str) -> Option<[Done; 2]> {
    if std::process::Command::new(RUNC).arg("--version").output().is_err() {
        kata_cc_test_vectors::skip("binaries", "there is no runc to compare with: install runc");
        return None;
    }
    Some([RUNC, RUNTIME].map(|program| finish(&mut world.command_of(program, line))))
}

#[test]
fn refusals_are_runcs() {
    let Some(world) = World::new() else { return };
    let bundle = world.bundle("b", "true");
    let missing = "does not exist";
    for (line, words) in [
        ("state nope", missing),
        ("start nope", missing),
        ("kill nope", missing),
        ("delete nope", missing),
        ("delete --force nope", ""),
        ("exec nope true", missing),
        ("ps nope", missing),
        ("pause nope", missing),
        ("resume nope", missing),
        ("events --stats nope", missing),
        ("update --memory 5 nope", missing),
        ("create --bundle /no/such/bundle x", ""),
        ("create --bundle /tmp x/y", ""),
        ("create", ""),
        ("create --no-such-flag x", ""),
        (&format!("create --bundle {} ..", bundle.display()), "invalid container ID format"),
        (
            &format!("create --bundle {}/rootfs x", bundle.display()),
            "JSON specification file config.json not found",
        ),
        (&format!("create --preserve-fds x --bundle {} x", bundle.display()), ""),
    ] {
        let Some([theirs, ours]) = both(&world, line) else { return };
        assert_eq!(theirs.code, ours.code, "{line}: {theirs:?} {ours:?}");
        assert!(theirs.err.contains(words) && ours.err.contains(words), "{line}: {theirs:?} {ours:?}");
        assert!(ours.code == 0 || !ours.err.is_empty(), "{line}");
    }
    world.nothing_left();
}

#[test]
fn empty_lists_are_runcs() {
    let Some(world) = World::new() else { return };
    for line in ["list", "list --format json", "list -q"] {
        let Some([theirs, ours]) = both(&world, line) else { return };
        assert_eq!((theirs.code, theirs.out), (ours.code, ours.out), "{line}");
    }
}

#[test]
fn a_new_specification_is_runcs() {
    let Some(world) = World::new() else { return };
    for flag in ["", " --rootless"] {
        let read = |program: &str| -> Value {
            let folder = world.path(&format!("spec{}", flag.trim()));
            std::fs::create_dir_all(&folder).unwrap();
            let _ = std::fs::remove_file(folder.join("config.json"));
            let line = format!("spec --bundle {}{flag}", folder.display());
            finish(&mut world.command_of(program, &line)).ok();
            let again = finish(&mut world.command_of(program, &line));
            assert!(again.code == 1 && again.err.contains("exists. Remove it first"), "{again:?}");
            let mut spec: Value =
                serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
            // Their version is a development one.
            spec["ociVersion"] = "1.0.2".into();
            spec
        };
        if both(&world, "list").is_none() {
            return;
        }
        assert_eq!(read(RUNC), read(RUNTIME));
    }
}

#[test]
fn a_state_has_the_same_fields() {
    let Some(world) = World::new() else { return };
    let bundle = world.bundle("b", "sleep 1000");
    let keys = |program: &str, id: &str| -> Option<Vec<String>> {
        let line = format!("create --bundle {} {id}", bundle.display());
        let created = finish(&mut world.command_of(program, &line));
        if created.code != 0 && program == RUNC {
            println!("skipped: runc cannot run containers here: {created:?}");
            return None;
        }
        created.ok();
        let state = finish(&mut world.command_of(program, &format!("state {id}"))).ok();
        finish(&mut world.command_of(program, &format!("delete --force {id}"))).ok();
        let state: Value = serde_json::from_str(&state).unwrap();
        assert_eq!(state["status"], "created");
        Some(state.as_object().unwrap().keys().cloned().collect())
    };
    if both(&world, "list").is_none() {
        return;
    }
    let ours = keys(RUNTIME, "ours");
    if let Some(theirs) = keys(RUNC, "theirs") {
        assert_eq!(Some(theirs), ours);
    }
    world.nothing_left();
}

#[test]
fn features_have_the_same_shape() {
    let Some(world) = World::new() else { return };
    let Some([theirs, ours]) = both(&world, "features") else { return };
    let read = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
    let (theirs, ours) = (read(&theirs.ok()), read(&ours.ok()));
    for key in theirs.as_object().unwrap().keys() {
        assert_eq!(std::mem::discriminant(&theirs[key]), std::mem::discriminant(&ours[key]), "{key}");
    }
    for key in theirs["linux"].as_object().unwrap().keys() {
        assert!(!ours["linux"][key].is_null(), "{key}");
    }
}
