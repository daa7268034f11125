//! Key providers that the user configured, as other tools of ocicrypt find them; those that speak gRPC are asked here.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use kata_cc_grpc_protocol::keyprovider::KeyProviderKeyWrapProtocolInput;
use kata_cc_grpc_protocol::keyprovider::key_provider_service_client::KeyProviderServiceClient;
use kata_cc_image::provider::{
    CONFIG_VARIABLE, Exchange, MAX_ANSWER, NamedProvider, Operation, ProviderError, Way, read_config,
};
use tonic::transport::Endpoint;
use zeroize::Zeroizing;

use crate::commands::read_input;

/// Most bytes of the configuration.
const MAX_CONFIG: u64 = 64 << 10;
/// As long as for programs: a person may have to confirm.
const PATIENCE: Duration = Duration::from_secs(120);

/// The provider `NAME[:PARAMETERS]` of the user's configuration.
pub(super) fn named(text: &str) -> anyhow::Result<NamedProvider> {
    let (name, parameters) = text.split_once(':').unwrap_or((text, ""));
    let file = std::env::var_os(CONFIG_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    let file = file.with_context(|| {
        format!("key provider {name:?} is asked for, and {CONFIG_VARIABLE} names no configuration")
    })?;
    let mut config =
        read_config(&read_input(Some(&file), MAX_CONFIG)?).with_context(|| format!("{}", file.display()))?;
    let exchange: Arc<dyn Exchange> = match config.remove(name) {
        Some(Way::Command(command)) => Arc::new(command),
        Some(Way::Grpc { address }) => Arc::new(GrpcProvider { address }),
        Some(Way::Other(way)) => {
            let known = "cmd, grpc without TLS";
            return Err(ProviderError::Way { name: name.to_owned(), way, known }.into());
        }
        None => {
            let known = config.into_keys().collect::<Vec<_>>().join(", ");
            return Err(ProviderError::Unknown { name: name.to_owned(), known }.into());
        }
    };
    Ok(NamedProvider { name: name.to_owned(), parameters: parameters.to_owned(), exchange })
}

/// A provider behind a port, as CoCo's `coco_keyprovider` is.
struct GrpcProvider {
    address: String,
}

impl GrpcProvider {
    fn failed(&self, why: impl ToString) -> ProviderError {
        ProviderError::Failed { at: self.at(), why: why.to_string() }
    }

    async fn call(&self, operation: Operation, request: &[u8]) -> Result<Vec<u8>, ProviderError> {
        let url = format!("http://{}", self.address.trim_start_matches("http://"));
        let endpoint = Endpoint::from_shared(url).map_err(|error| self.failed(error))?;
        let channel = endpoint
            .connect_timeout(Duration::from_secs(10))
            .connect()
            .await
            .map_err(|error| self.failed(kata_cc_causes::causes(&error)))?;
        let mut client = KeyProviderServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        let request =
            KeyProviderKeyWrapProtocolInput { key_provider_key_wrap_protocol_input: request.to_vec() };
        let answer = match operation {
            Operation::Wrap => client.wrap_key(request).await,
            Operation::Unwrap => client.un_wrap_key(request).await,
        };
        let answer = answer.map_err(|status| {
            self.failed(format!(
                "{}: {}",
                status.code(),
                status.message().chars().take(400).collect::<String>()
            ))
        })?;
        Ok(answer.into_inner().key_provider_key_wrap_protocol_output)
    }
}

#[async_trait]
impl Exchange for GrpcProvider {
    fn at(&self) -> String {
        self.address.clone()
    }

    async fn exchange(
        &self,
        operation: Operation,
        request: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, ProviderError> {
        let call = tokio::time::timeout(PATIENCE, self.call(operation, request));
        Ok(Zeroizing::new(call.await.map_err(|_| ProviderError::Silent { at: self.at() })??))
    }
}
