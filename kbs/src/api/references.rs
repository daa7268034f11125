//! Reference values: what evidence is compared with.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use kata_cc_kbs_protocol::admin::{ReferenceValueList, ReferenceValueMessage};
use serde_json::Value;

use super::{AdminCall, Shared};
use crate::error::ApiError;
use crate::request::parse;

fn missing(id: &str) -> ApiError {
    let id: String = id.chars().filter(|c| !c.is_control()).take(255).collect();
    ApiError::NotFound(format!("reference value {id} does not exist"))
}

pub(crate) async fn set(
    State(kbs): State<Shared>,
    call: AdminCall,
    body: Bytes,
) -> Result<Response, ApiError> {
    let administrator = call.admit(&kbs, "set reference values").await?;
    let message: ReferenceValueMessage = parse(&call.headers, &body)?;
    let values = message.values().map_err(|e| ApiError::Rvps(e.to_string()))?;
    kbs.service.set_reference_values_by(&values, &administrator.to_string()).await?;
    Ok([(header::CONTENT_TYPE, "application/json")].into_response())
}

pub(crate) async fn list(
    State(kbs): State<Shared>,
    call: AdminCall,
) -> Result<Json<ReferenceValueList>, ApiError> {
    call.admit(&kbs, "list reference values").await?;
    Ok(Json(ReferenceValueList { reference_values: kbs.service.reference_values().await? }))
}

pub(crate) async fn read(
    State(kbs): State<Shared>,
    call: AdminCall,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    call.admit(&kbs, "read reference value").await?;
    let value = kbs.service.reference_values().await?.remove(&id);
    value.map(Json).ok_or_else(|| missing(&id))
}

pub(crate) async fn delete(
    State(kbs): State<Shared>,
    call: AdminCall,
    Path(id): Path<String>,
) -> Result<(), ApiError> {
    let administrator = call.admit(&kbs, "delete reference value").await?;
    let gone = kbs.service.delete_reference_value(&id, &administrator.to_string()).await?;
    if gone { Ok(()) } else { Err(missing(&id)) }
}
