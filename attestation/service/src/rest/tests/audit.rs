//! The audit log over REST: whose it is to read, what a page is, and what is none.

use super::*;

/// The records of an export.
fn exported(answer: &Answer) -> Vec<Value> {
    let text = String::from_utf8(answer.body.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn the_audit_log_is_the_administrators_to_read() {
    let bench = bench().await;
    let log = bench.api.service.state.store.audit().clone();
    bench.register(&json!({"a": 1, "b": 2})).await;
    // Nobody without the administrator's token, whatever they ask for; and nothing of it is told or recorded.
    let other = key("EdDSA").sign(&json!({}), &json!({"role": "admin", "exp": crate::now() + 60})).unwrap();
    for path in ["/api/v1/audit", "/api/v1/audit?after=1&limit=1", "/api/v1/audit?limit=x"] {
        assert_problem(&bench.get(path).await, 401, "admin", Some("authorization"));
        for token in [&other, "x"] {
            let request = Request::get(path).header("authorization", format!("Bearer {token}"));
            assert_problem(&bench.send(request, Body::empty()).await, 401, "admin", Some("authorization"));
        }
    }
    assert_eq!(log.checkpoint().await.unwrap().seq, 2);
    // Whole: what anybody can check who has the key, and the call itself is on it.
    let answer = bench.admin("GET", "/api/v1/audit", &json!(null)).await;
    assert_eq!((answer.status, answer.kind.as_str()), (200, "application/jsonl"));
    let whole = crate::store::verify_export(answer.body.as_slice(), Some(&log.public_key()), None).unwrap();
    assert_eq!((whole.first, whole.records), (1, 3));
    let lines = exported(&answer);
    let reasons: Vec<_> = lines.iter().filter_map(|line| line["record"]["reason"].as_str()).collect();
    assert_eq!(reasons, ["set reference value", "set reference value", "export audit log"]);
    let asked = &lines[3]["record"];
    assert_eq!(
        (&asked["who"], &asked["verdict"], &asked["resource"]["id"]),
        (&json!("alice"), &json!("asked"), &json!("after 0"))
    );
    // Page by page: the same lines, and the signed end on the last one.
    let page = bench.admin("GET", "/api/v1/audit?after=1&limit=1", &json!(null)).await;
    let page = exported(&page);
    assert_eq!((&page[0], page.len()), (&lines[0], 2), "{page:?}");
    assert_eq!(page[1], lines[2]);
    let last = exported(&bench.admin("GET", "/api/v1/audit?after=4&limit=10", &json!(null)).await);
    assert_eq!(last[1]["record"]["resource"]["id"], "after 4, 10 records");
    assert_eq!((last[2]["checkpoint"]["seq"].as_u64(), last.len()), (Some(5), 3), "{last:?}");
}

#[tokio::test]
async fn a_page_of_the_audit_log_that_is_none_is_refused() {
    let bench = bench().await;
    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=10001", "limit"),
        ("limit=many", "limit"),
        ("limit=", "limit"),
        ("limit=-1", "limit"),
        ("after=-1", "after"),
        ("after=1.5", "after"),
        ("after=9007199254740992", "after"),
        ("after=99999999999999999999", "after"),
        ("after=1&after=2", "query"),
        ("before=1", "query"),
        ("after=%ff", "after"),
    ] {
        let answer = bench.admin("GET", &format!("/api/v1/audit?{query}"), &json!(null)).await;
        assert_problem(&answer, 400, "request", Some(field));
        assert!(answer.json()["detail"].as_str().unwrap().contains(&format!("parameter {field}")), "{query}");
    }
    assert_eq!(bench.api.service.state.store.audit().checkpoint().await.unwrap().seq, 0, "nothing was asked");
    for query in ["", "?", "?after=0", "?after=9007199254740991&limit=10000"] {
        let answer = bench.admin("GET", &format!("/api/v1/audit{query}"), &json!(null)).await;
        assert_eq!(answer.status, 200, "{query}: {answer:?}");
    }
}
