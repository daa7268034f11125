//! The audit log of a running key broker or attestation service, read page by page and checked as one export.
//!
//! The log grows while it is read; the last page has fewer records than were asked for and ends with the signed end.

use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use kata_cc_kbs_client::{AdminAuth, AdminClient, AuditedService};
use kata_cc_store::audit::{Known, PublicKey, VerifyError, Whole, verify_export};
use serde_json::Value;
use tokio::runtime::Handle;

use super::super::broker::BrokerArguments;
use super::super::{block_on, read_text};

/// Records of a page. Of the largest ones (16 details of 1 KiB and as much again) they are below what a client takes as one
/// answer.
const PAGE: u64 = 128;

/// What went wrong while reading, for who has only been told that a line cannot be read.
type Failure = Arc<Mutex<Option<anyhow::Error>>>;

/// Checks the log; an outer error says why it could not be read.
pub(super) fn verify(
    broker: &BrokerArguments,
    of: AuditedService,
    token: Option<&Path>,
    key: Option<PublicKey>,
    after: Option<Known>,
) -> anyhow::Result<Result<Whole, VerifyError>> {
    let client = match token {
        Some(path) => broker.client_as(AdminAuth::Token(read_text(path)?.trim().to_owned().into()))?,
        None => broker.client()?,
    };
    let failure = Failure::default();
    let pages = Pages::new(client, of, Arc::clone(&failure));
    let checked = block_on(async {
        let check =
            move || verify_export(BufReader::new(pages.on(Handle::current())), key.as_ref(), after.as_ref());
        tokio::task::spawn_blocking(check).await.context("the check was ended")
    })?;
    match failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(error) => Err(error),
        None => Ok(checked),
    }
}

/// Pages one after the other as one text.
struct Pages {
    client: AdminClient,
    of: AuditedService,
    failure: Failure,
    runtime: Option<Handle>,
    /// First line of the first page, which every page has.
    head: Option<String>,
    /// Number of the last record that came.
    last: u64,
    ended: bool,
    page: Vec<u8>,
    at: usize,
}

impl Pages {
    fn new(client: AdminClient, of: AuditedService, failure: Failure) -> Self {
        Self {
            client,
            of,
            failure,
            runtime: None,
            head: None,
            last: 0,
            ended: false,
            page: Vec::new(),
            at: 0,
        }
    }

    fn on(mut self, runtime: Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }

    fn next(&mut self) -> anyhow::Result<()> {
        let runtime = self.runtime.as_ref().context("there is no runtime")?;
        let page = runtime.block_on(self.client.audit_page(self.of, self.last, PAGE))?;
        (self.page, self.at) = (self.strip(&page)?, 0);
        Ok(())
    }

    /// The lines of a page without the first one, which is kept of the first page only.
    fn strip(&mut self, page: &[u8]) -> anyhow::Result<Vec<u8>> {
        let text = std::str::from_utf8(page).context("the service's answer is not UTF-8")?;
        let (head, lines) =
            text.split_once('\n').context("the service's answer is no page of an audit log")?;
        let mut records = 0;
        for line in lines.lines() {
            let value: Value =
                serde_json::from_str(line).context("the service's answer is no page of an audit log")?;
            if let Some(seq) = value.get("seq").and_then(Value::as_u64) {
                (self.last, records) = (seq, records + 1);
            }
            anyhow::ensure!(
                self.head.is_none() || value.get("anchor").is_none(),
                "records were removed from the log while it was read: check it again"
            );
        }
        self.ended = records < PAGE;
        match &self.head {
            Some(known) => {
                anyhow::ensure!(known == head, "the log became another one while it was read");
                Ok(lines.as_bytes().to_vec())
            }
            None => {
                self.head = Some(head.to_owned());
                Ok(page.to_vec())
            }
        }
    }
}

impl Read for Pages {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.at >= self.page.len() {
            if self.ended {
                return Ok(0);
            }
            if let Err(error) = self.next() {
                *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                return Err(std::io::Error::other("the service gave no page"));
            }
        }
        let mut rest = self.page.get(self.at..).unwrap_or_default();
        let read = rest.read(buffer)?;
        self.at += read;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_cc_kbs_client::Endpoint;

    fn pages() -> Pages {
        let endpoint = Endpoint { url: "http://127.0.0.1:1".to_owned(), ..Endpoint::default() };
        let client = AdminClient::new(&endpoint, AdminAuth::None).unwrap();
        Pages::new(client, AuditedService::KeyBroker, Failure::default())
    }

    #[test]
    fn pages_become_one_text_and_what_is_no_page_is_told() {
        let mut pages = pages();
        let full: String = (1..=PAGE).map(|n| format!("{{\"seq\":{n}}}\n")).collect();
        let first = pages.strip(format!("{{\"audit\":1}}\n{full}").as_bytes()).unwrap();
        assert!(first.starts_with(b"{\"audit\":1}\n{\"seq\":1}") && !pages.ended && pages.last == PAGE);
        let second = pages.strip(b"{\"audit\":1}\n{\"seq\":501}\n{\"checkpoint\":{}}\n").unwrap();
        assert_eq!(second, b"{\"seq\":501}\n{\"checkpoint\":{}}\n");
        assert!(pages.ended && pages.last == 501);
        for (page, why) in [
            ("{\"audit\":1}\n{\"anchor\":{}}\n", "records were removed"),
            ("{\"audit\":2}\n{\"seq\":502}\n", "became another one"),
            ("{\"audit\":1}\n<html>\n", "no page"),
            ("", "no page"),
        ] {
            let error = format!("{:#}", pages.strip(page.as_bytes()).unwrap_err());
            assert!(error.contains(why), "{page}: {error}");
        }
    }
}
