//! Against a server that plays AMD's KDS with real certificates, in good and bad days.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::*;
use kata_cc_endorsements::{EndorsementsConfig, Item, SnpNeed, SourceError};
use kata_cc_snp::verify::{Product, VekKind};
use kata_cc_snp::{Endorsements, Report, TrustAnchor, verify};

#[tokio::test]
async fn real_certificates_come_by_amds_addresses_and_verify() {
    for (name, address) in [
        (
            "milan-v3-a",
            "/vcek/v1/Milan/a3fdc2c64dc299ab90d4238973864b586378e2e5ef9c9d4dc608f3bdaa89a969a03f1b5752cad55a0c1547ade800dbd7404e9cb3f9738da3b280d1df69cf82e4?blSPL=04&teeSPL=00&snpSPL=24&ucodeSPL=219",
        ),
        (
            "genoa-v5",
            "/vcek/v1/Genoa/d2421d976f95ce0ba849b7cc5c789122f1e59c77a037272c137ae4d188bb102adbc7c53d0302bff82a432c94a305dec7a7a270ceb19a10f04a83316c6486968d?blSPL=10&teeSPL=00&snpSPL=25&ucodeSPL=84",
        ),
        ("turin-v5", "/vcek/v1/Turin/3b42092f69c656d3?fmcSPL=00&blSPL=01&teeSPL=00&snpSPL=02&ucodeSPL=71"),
    ] {
        let Some(recorded) = recorded(name) else { return };
        let vcek = recorded.vcek.clone();
        let server = Server::start(move |_, _| bytes(&vcek)).await;
        let endorser = endorser(&EndorsementsConfig { fetch_crl: false, ..config(&server) });
        let report = Report::parse(&recorded.report).unwrap();
        let need =
            SnpNeed { report: &report, product: Some(recorded.product), has_vek: false, has_ask: false };
        let supply = endorser.snp(&need).await;
        assert_eq!(supply.problems, []);
        let given = Endorsements { vek: supply.vek.unwrap(), ..Endorsements::default() };
        verify(&recorded.report, &given, &TrustAnchor::Amd(recorded.product), NOW).unwrap();
        // Unchanging: not asked again.
        assert!(endorser.snp(&need).await.vek.is_some());
        assert_eq!(server.seen(), [address]);
    }
}

#[tokio::test]
async fn evidence_without_certificates_is_completed_and_then_verified() {
    use kata_cc_kbs_protocol::Tee;
    use kata_cc_snp::evidence::SnpEvidence;
    use kata_cc_snp::{CertTable, EndorsementSource as _};
    let Some(recorded) = recorded("milan-v3-a") else { return };
    let vcek = recorded.vcek.clone();
    let server =
        Server::start(move |_, path| if path.ends_with("/crl") { status(404) } else { bytes(&vcek) }).await;
    let endorser = endorser(&config(&server));
    let report = Report::parse(&recorded.report).unwrap();
    assert_eq!(
        endorser.find(&report, recorded.product),
        kata_cc_snp::Supply::default(),
        "a look-up fetches nothing"
    );
    let evidence = serde_json::to_value(SnpEvidence::new(&report, &CertTable::default())).unwrap();
    for _ in 0..3 {
        let problems = endorser.complete(Tee::Snp, &evidence).await;
        assert!(
            matches!(problems.as_slice(), [SourceError::NotFound { .. }]),
            "no list is told: {problems:?}"
        );
    }
    let found = endorser.find(&report, recorded.product).vek.unwrap();
    assert_eq!(found.as_ref(), recorded.vcek);
    assert_eq!(server.seen().len(), 2, "the certificate, the list");
    // What cannot be read has no needs.
    for other in [serde_json::json!({}), serde_json::json!({"attestation_report": 1})] {
        assert_eq!(endorser.complete(Tee::Snp, &other).await, []);
    }
}

#[tokio::test]
async fn what_was_got_once_survives_restart_and_outage() {
    let Some(recorded) = recorded("milan-v3-a") else { return };
    let folder = tempfile::tempdir().unwrap();
    let vcek = recorded.vcek.clone();
    let server = Server::start(move |_, _| bytes(&vcek)).await;
    let config = EndorsementsConfig { cache_dir: Some(folder.path().join("cache")), ..config(&server) };
    endorser(&config).get(&recorded.item).await.unwrap();
    server.stop();
    let again = endorser(&config).get(&recorded.item).await.unwrap();
    assert_eq!((again.bytes, server.hits()), (recorded.vcek.clone(), 1));
    // A broken file is as good as none.
    let file = folder.path().join("cache").join(recorded.item.path());
    std::fs::write(&file, b"broken").unwrap();
    let refused = endorser(&config).get(&recorded.item).await.unwrap_err();
    assert!(matches!(refused, SourceError::Unavailable { .. }), "{refused}");
}

#[tokio::test]
async fn what_is_no_longer_fresh_serves_when_the_service_is_down() {
    let Some(recorded) = recorded("milan-v3-a") else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(recorded.item.path());
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, &recorded.vcek).unwrap();
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(400 * 24 * 3600);
    std::fs::File::options().write(true).open(&file).unwrap().set_modified(long_ago).unwrap();
    let server = Server::start(|_, _| status(503)).await;
    let config = EndorsementsConfig { cache_dir: Some(folder.path().to_owned()), ..config(&server) };
    let document = endorser(&config).get(&recorded.item).await.unwrap();
    assert_eq!(document.bytes, recorded.vcek);
    assert_eq!(server.hits(), 4, "it was tried to get a new one");
}

#[tokio::test]
async fn retry_after_is_honoured() {
    let Some(recorded) = recorded("milan-v3-a") else { return };
    let vcek = recorded.vcek.clone();
    let server = Server::start(move |n, _| if n == 0 { limited("1") } else { bytes(&vcek) }).await;
    let start = std::time::Instant::now();
    endorser(&config(&server)).get(&recorded.item).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1), "it waited as it was told");
    assert_eq!(server.hits(), 2);
}

#[tokio::test]
async fn a_service_that_wants_to_be_left_alone_is() {
    let Some(recorded) = recorded("milan-v3-a") else { return };
    let server = Server::start(|_, _| limited("3000")).await;
    let endorser = endorser(&config(&server));
    for item in [&recorded.item, &unknown_chip(), &recorded.item] {
        let refused = endorser.get(item).await.unwrap_err();
        let SourceError::RateLimited { retry_after, .. } = refused else { panic!("{refused}") };
        assert!(retry_after > Duration::from_secs(2900) && retry_after < Duration::from_secs(3400));
    }
    assert_eq!(server.hits(), 1, "one answer holds for all requests");
}

#[tokio::test]
async fn limits_without_a_time_and_failures_are_tried_again() {
    let Some(recorded) = recorded("milan-v3-a") else { return };
    let vcek = recorded.vcek.clone();
    let server = Server::start(move |n, _| match n {
        0 => status(429),
        1 => status(500),
        2 => status(503),
        _ => bytes(&vcek),
    })
    .await;
    endorser(&config(&server)).get(&recorded.item).await.unwrap();
    assert_eq!(server.hits(), 4);
}

#[tokio::test]
async fn failures_are_remembered_for_a_while() {
    for (code, hits) in [(500, 4), (404, 1), (403, 1)] {
        let server = Server::start(move |_, _| status(code)).await;
        let endorser = endorser(&config(&server));
        for _ in 0..5 {
            let refused = endorser.get(&unknown_chip()).await.unwrap_err();
            assert_eq!(matches!(refused, SourceError::NotFound { .. }), code == 404, "{refused}");
        }
        assert_eq!(server.hits(), hits, "{code}");
    }
}

#[tokio::test]
async fn one_request_for_many_who_ask_at_once() {
    let Some(recorded) = recorded("genoa-v5") else { return };
    let vcek = recorded.vcek.clone();
    let server = Server::start(move |_, _| {
        std::thread::sleep(Duration::from_millis(100));
        bytes(&vcek)
    })
    .await;
    let endorser = Arc::new(endorser(&config(&server)));
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let (endorser, item) = (Arc::clone(&endorser), recorded.item.clone());
            tokio::spawn(async move { endorser.get(&item).await.map(|document| document.bytes) })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap().unwrap(), recorded.vcek);
    }
    assert_eq!(server.hits(), 1);
}

#[tokio::test]
async fn what_is_not_the_certificate_asked_for_is_neither_given_nor_kept() {
    let (Some(milan), Some(genoa)) = (recorded("milan-v3-a"), recorded("genoa-v5")) else { return };
    let mut cut = milan.vcek.clone();
    cut.pop();
    for (body, why) in [
        (genoa.vcek.clone(), "is for Genoa"),
        (recorded("milan-v2-a").unwrap().vcek, "is for chip c38427"),
        (b"<html>maintenance</html>".to_vec(), "malformed"),
        (cut, "malformed"),
        (Vec::new(), "malformed"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(move |_, _| bytes(&body)).await;
        let config = EndorsementsConfig { cache_dir: Some(folder.path().to_owned()), ..config(&server) };
        let endorser = endorser(&config);
        let refused = endorser.get(&milan.item).await.unwrap_err();
        assert!(
            matches!(refused, SourceError::Unusable { .. }) && refused.to_string().contains(why),
            "{refused}"
        );
        assert!(!folder.path().join(milan.item.path()).exists());
        endorser.get(&milan.item).await.unwrap_err();
        assert_eq!(server.hits(), 1);
    }
}

#[tokio::test]
async fn a_body_that_is_too_large_or_too_slow_is_given_up() {
    let server = Server::start(|_, _| bytes(&vec![0; 64 * 1024 + 1])).await;
    let refused = endorser(&config(&server)).get(&unknown_chip()).await.unwrap_err();
    assert!(refused.to_string().contains("more than 65536 bytes"), "{refused}");
    assert_eq!(server.hits(), 1);

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let dribbling = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut held = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            stream.read(&mut request).await.ok();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n0123").await.ok();
            held.push(stream);
        }
    });
    let mut config = config(&server);
    config.kds.url = url;
    config.deadline_seconds = 2;
    let start = std::time::Instant::now();
    let refused = config.build().unwrap().get(&unknown_chip()).await.unwrap_err();
    dribbling.abort();
    assert!(matches!(refused, SourceError::Unavailable { .. }), "{refused}");
    assert!(start.elapsed() < Duration::from_secs(20), "the whole look-up has an end");
}

#[tokio::test]
async fn without_a_network_nothing_is_asked() {
    let Some(recorded) = recorded("milan-v3-a") else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(recorded.item.path());
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, &recorded.vcek).unwrap();
    let server = Server::start(|_, _| status(500)).await;
    let config = EndorsementsConfig {
        offline_dir: Some(folder.path().to_owned()),
        air_gapped: true,
        ..config(&server)
    };
    let endorser = endorser(&config);
    assert_eq!(endorser.get(&recorded.item).await.unwrap().bytes, recorded.vcek);
    let crl = Item::SnpCrl { kind: VekKind::Vcek, product: Product::Milan };
    for item in [unknown_chip(), crl] {
        let refused = endorser.get(&item).await.unwrap_err();
        assert!(refused.to_string().contains("offline_dir"), "{refused}");
    }
    // Trustee's name for a chip's only certificate.
    std::fs::rename(&file, file.with_file_name("vcek.der")).unwrap();
    let again = common::endorser(&config).get(&recorded.item).await.unwrap();
    assert_eq!(again.bytes, recorded.vcek);
    assert_eq!(server.hits(), 0);
}

#[tokio::test]
async fn requests_go_through_the_proxy() {
    let Some(recorded) = recorded("milan-v3-a") else { return };
    let vcek = recorded.vcek.clone();
    let proxy = Server::start(move |_, _| bytes(&vcek)).await;
    let mut config = config(&proxy);
    config.proxy = Some(proxy.url.clone());
    config.kds.url = "http://kds.invalid".to_owned();
    assert_eq!(endorser(&config).get(&recorded.item).await.unwrap().bytes, recorded.vcek);
    assert_eq!(proxy.hits(), 1);
}

#[tokio::test]
async fn a_report_with_a_masked_chip_id_cannot_be_looked_up() {
    let Some(recorded) = recorded("milan-v3-a") else { return };
    let server = Server::start(|_, _| status(500)).await;
    let mut report = Report::parse(&recorded.report).unwrap();
    report.chip_id = [0; 64];
    let need = SnpNeed { report: &report, product: Some(Product::Milan), has_vek: false, has_ask: true };
    let config = EndorsementsConfig { fetch_crl: false, ..config(&server) };
    let supply = endorser(&config).snp(&need).await;
    assert!(supply.vek.is_none() && supply.problems[0].to_string().contains("masks its chip id"));
    let unknown = endorser(&config).snp(&SnpNeed { product: None, ..need }).await;
    assert!(unknown.problems[0].to_string().contains("processor line"));
    assert_eq!(server.hits(), 0);
}

#[test]
fn configurations_that_do_not_go_are_refused() {
    let refused = |config: EndorsementsConfig| config.build().unwrap_err().to_string();
    let base = EndorsementsConfig::default();
    base.build().unwrap();
    assert!(refused(EndorsementsConfig { deadline_seconds: 0, ..base.clone() }).contains("deadline_seconds"));
    let missing = Some("/nonexistent/folder".into());
    assert!(refused(EndorsementsConfig { offline_dir: missing, ..base.clone() }).contains("offline_dir"));
    let mut ftp = base.clone();
    ftp.kds.enabled = true;
    ftp.kds.url = "ftp://kds".to_owned();
    assert!(refused(ftp.clone()).contains("expected http or https"));
    ftp.air_gapped = true;
    ftp.build().unwrap();
}
