//! The demonstration behind `./x run`: an encrypted image runs after attestation, and does not when one thing differs.
//!
//! `kata-cc-demo prepare DIR` makes keys, certificates and the image; `kata-cc-demo show DIR` starts the services and
//! the microVMs, lets the user watch, and ends in a table. Exit code 0 only when the attested run worked and every refusal
//! was for the expected reason.

use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use kata_cc_tests::image::MARKER;
use kata_cc_tests::refusals;
use kata_cc_tests::world::{self, Tampering, World};

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["prepare", dir] => world::prepare(Path::new(dir)).map(|()| ExitCode::SUCCESS),
        ["show", dir] => show(Path::new(dir), ""),
        ["show", dir, only] => show(Path::new(dir), only),
        _ => bail!("usage: kata-cc-demo prepare DIR | show DIR [WORDS OF A CASE]"),
    }
}

/// One line of the summary.
struct Row {
    what: String,
    seconds: f64,
    good: bool,
    told: String,
}

fn show(material: &Path, only: &str) -> anyhow::Result<ExitCode> {
    let dir = tempfile::Builder::new().prefix("kcc-demo").tempdir_in("/run")?;
    println!(
        "\n== a registry, a key broker; the image is encrypted, its key and policy go to the key broker"
    );
    let start = Instant::now();
    let mut world = World::start(material, dir.path())?;
    println!(
        "   ready after {:.0} s: {} and {}",
        start.elapsed().as_secs_f64(),
        world.registry.host,
        world.kbs.url
    );

    let mut rows = vec![attested_run(&world)?];
    for (number, case) in refusals::cases().iter().enumerate().filter(|(_, case)| case.name.contains(only)) {
        println!("\n== the same run, but: {}", case.name);
        let start = Instant::now();
        let outcome = case.run(&mut world, &format!("refused-{number}"))?;
        println!("   {}", outcome.reason);
        if !outcome.as_expected {
            println!("   expected one of {:?}; all that was printed:\n{}", case.expected, outcome.text);
            world
                .kata_cc(&Tampering::default())?
                .args(["logs", "--all", &format!("refused-{number}")])
                .status()?;
        }
        rows.push(Row {
            what: case.name.to_owned(),
            seconds: start.elapsed().as_secs_f64(),
            good: outcome.as_expected,
            told: "refused".into(),
        });
    }
    summary(&rows);
    Ok(if rows.iter().all(|row| row.good) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The run that works, watched stage by stage.
fn attested_run(world: &World) -> anyhow::Result<Row> {
    println!("\n== kata-cc run {}  (the guest is measured, attested, given the key)", world.image);
    let start = Instant::now();
    let mut command = world.run_command("attested", &Tampering::default(), &[])?;
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("kata-cc run")?;
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    let good = output.status.success() && text.contains(MARKER);
    let seconds = start.elapsed().as_secs_f64();
    println!("\n== kata-cc explain attested");
    world.kata_cc(&Tampering::default())?.args(["explain", "attested"]).status()?;
    let told = if good { "ran, and printed the decrypted file" } else { "did NOT run" };
    Ok(Row { what: "attested run of the encrypted image".into(), seconds, good, told: told.into() })
}

fn summary(rows: &[Row]) {
    println!("\n{:<56} {:>7}  {:<9} outcome", "what", "seconds", "expected");
    for row in rows {
        let expected = if row.good { "yes" } else { "NO" };
        println!("{:<56} {:>7.1}  {expected:<9} {}", row.what, row.seconds, row.told);
    }
    let good = rows.iter().filter(|row| row.good).count();
    println!("{good} of {} as expected. The TEE was simulated (sim-snp): it protects nothing.", rows.len());
}
