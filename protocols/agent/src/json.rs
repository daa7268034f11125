//! Request messages as the JSON that policies see: the form Kata's serde derivation gives.
//!
//! Proto field names as they are; `type` becomes `type_`; unset messages are null; enumerations are their numbers;
//! bytes are arrays of numbers; unset lists are empty. Done by reflection, so that a new message needs no code.

use protobuf::MessageDyn;
use protobuf::reflect::{ReflectFieldRef, ReflectValueRef};
use serde_json::{Map, Value, json};

use crate::agent::CopyFileRequest;

/// A message as JSON.
#[must_use]
pub fn message(message: &dyn MessageDyn) -> Value {
    let mut fields = Map::new();
    for field in message.descriptor_dyn().fields() {
        let value = match field.get_reflect(message) {
            ReflectFieldRef::Optional(optional) => match optional.value() {
                Some(v) => scalar(&v),
                // A scalar without presence is never unset; a message or oneof member may be.
                None if field.runtime_field_type_is_message() => Value::Null,
                None => match field.containing_oneof_including_synthetic() {
                    Some(_) => Value::Null,
                    None => scalar(&field.singular_default_value()),
                },
            },
            ReflectFieldRef::Repeated(list) => list.into_iter().map(|v| scalar(&v)).collect(),
            ReflectFieldRef::Map(map) => {
                map.into_iter().map(|(k, v)| (k.to_string(), scalar(&v))).collect::<Map<_, _>>().into()
            }
        };
        let name = match field.name() {
            "type" => "type_".to_owned(),
            other => other.to_owned(),
        };
        fields.insert(name, value);
    }
    Value::Object(fields)
}

/// What policies see of `CopyFileRequest` in place of its message (Kata's `policy.rs`): not the data, but where a link leads.
#[must_use]
pub fn copy_file(request: &CopyFileRequest) -> Value {
    // <sys/stat.h>, `S_IFMT`
    let kind = match request.file_mode & 0o170_000 {
        0o100_000 => "Regular",
        0o040_000 => "Directory",
        0o120_000 => "Symlink",
        _ => "Unknown",
    };
    let target = match kind {
        "Symlink" => String::from_utf8_lossy(&request.data).into_owned(),
        _ => String::new(),
    };
    json!({
        "path": request.path, "file_type": kind, "symlink_target": target, "file_size": request.file_size,
        "file_mode": request.file_mode, "dir_mode": request.dir_mode, "uid": request.uid, "gid": request.gid,
        "offset": request.offset,
    })
}

/// Whether a field holds a message.
trait FieldKind {
    fn runtime_field_type_is_message(&self) -> bool;
}

impl FieldKind for protobuf::reflect::FieldDescriptor {
    fn runtime_field_type_is_message(&self) -> bool {
        matches!(
            self.runtime_field_type(),
            protobuf::reflect::RuntimeFieldType::Singular(protobuf::reflect::RuntimeType::Message(_))
        )
    }
}

fn scalar(value: &ReflectValueRef<'_>) -> Value {
    match value {
        ReflectValueRef::U32(v) => (*v).into(),
        ReflectValueRef::U64(v) => (*v).into(),
        ReflectValueRef::I32(v) | ReflectValueRef::Enum(_, v) => (*v).into(),
        ReflectValueRef::I64(v) => (*v).into(),
        ReflectValueRef::F32(v) => (*v).into(),
        ReflectValueRef::F64(v) => (*v).into(),
        ReflectValueRef::Bool(v) => (*v).into(),
        ReflectValueRef::String(v) => (*v).into(),
        ReflectValueRef::Bytes(v) => v.iter().copied().map(Value::from).collect(),
        ReflectValueRef::Message(m) => message(&**m),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::{CreateContainerRequest, UpdateInterfaceRequest, WriteStreamRequest};

    #[test]
    fn unset_fields_are_there() {
        let seen = message(&CreateContainerRequest::new());
        assert_eq!(seen["container_id"], json!(""));
        assert_eq!(seen["OCI"], Value::Null);
        assert_eq!(seen["storages"], json!([]));
        assert_eq!(seen["sandbox_pidns"], json!(false));
    }

    #[test]
    fn names_bytes_and_enumerations_are_katas() {
        let mut request = UpdateInterfaceRequest::new();
        let interface = request.interface.mut_or_insert_default();
        interface.type_ = "veth".to_owned();
        interface.IPAddresses.push(Default::default());
        let seen = message(&request);
        assert_eq!(seen["interface"]["type_"], json!("veth"));
        assert_eq!(seen["interface"]["IPAddresses"][0]["family"], json!(0));
        let mut write = WriteStreamRequest::new();
        write.data = vec![1, 2];
        assert_eq!(message(&write)["data"], json!([1, 2]));
    }

    #[test]
    fn maps_are_objects() {
        let mut request = CreateContainerRequest::new();
        let spec = request.OCI.mut_or_insert_default();
        spec.Annotations.insert("a".to_owned(), "b".to_owned());
        assert_eq!(message(&request)["OCI"]["Annotations"], json!({"a": "b"}));
    }
}
