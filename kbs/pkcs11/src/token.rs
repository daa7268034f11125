//! The token: what the broker asks, in terms of PKCS#11 (OASIS PKCS #11 v3.0).

use std::path::Path;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use kata_cc_kbs_pkcs11::{
    Answer, Bytes, ErrorKind, HelperError, KeyName, MAX_RANDOM, MAX_SECRET, MAX_WRAP, Operation, Secret,
    TokenChoice, WrapAlgorithm,
};
use zeroize::Zeroizing;

/// Bytes of a key for A256KW.
const AES_256: u64 = 32;
/// DER of the object identifiers of the curves (RFC 5480, 2.1.1.1).
const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];

type Result<T> = std::result::Result<T, HelperError>;

/// An open token, logged in.
pub(crate) struct Token {
    session: Session,
    label: String,
    model: String,
    serial: String,
}

fn fail<T>(kind: ErrorKind, detail: impl Into<String>) -> Result<T> {
    Err(HelperError::new(kind, detail))
}

/// The code's name alone: the crate's own text is the specification's paragraph about it.
fn explain(error: &Error) -> String {
    match error {
        Error::Pkcs11(code, function) => format!("{function:?} answered {code:?}"),
        other => other.to_string(),
    }
}

fn device(what: &str) -> impl Fn(Error) -> HelperError {
    move |error| {
        let kind = match &error {
            Error::Pkcs11(
                RvError::MechanismInvalid
                | RvError::MechanismParamInvalid
                | RvError::ArgumentsBad
                | RvError::KeyTypeInconsistent
                | RvError::KeyFunctionNotPermitted
                | RvError::WrappingKeyTypeInconsistent
                | RvError::UnwrappingKeyTypeInconsistent,
                _,
            ) => ErrorKind::Algorithm,
            Error::Pkcs11(
                RvError::EncryptedDataInvalid
                | RvError::EncryptedDataLenRange
                | RvError::WrappedKeyInvalid
                | RvError::WrappedKeyLenRange,
                _,
            ) => ErrorKind::Wrapped,
            _ => ErrorKind::Device,
        };
        HelperError::new(kind, format!("{what}: {}", explain(&error)))
    }
}

impl Token {
    /// Loads the module, finds the token, logs in.
    pub(crate) fn open(module: &str, choice: &TokenChoice, pin: &Secret) -> Result<Self> {
        let load =
            |e: Error| HelperError::new(ErrorKind::Module, format!("module {module}: {}", explain(&e)));
        let context = Pkcs11::new(Path::new(module)).map_err(load)?;
        context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).map_err(load)?;
        let slot = find_token(&context, choice)?;
        let info = context.get_token_info(slot).map_err(device("information about the token"))?;
        let session = context.open_rw_session(slot).map_err(device("opening a session"))?;
        let Ok(text) = std::str::from_utf8(&pin.0) else {
            return fail(ErrorKind::Pin, "the PIN is not UTF-8");
        };
        session.login(UserType::User, Some(&AuthPin::new(text.into()))).map_err(|error| match &error {
            Error::Pkcs11(
                RvError::PinIncorrect
                | RvError::PinLocked
                | RvError::PinInvalid
                | RvError::PinLenRange
                | RvError::PinExpired,
                _,
            ) => HelperError::new(
                ErrorKind::Pin,
                format!("token {:?} refuses the PIN: {}", info.label(), explain(&error)),
            ),
            _ => device("logging in")(error),
        })?;
        let (label, model, serial) = (info.label(), info.model(), info.serial_number());
        let (label, model, serial) = (label.to_owned(), model.to_owned(), serial.to_owned());
        Ok(Self { session, label, model, serial })
    }

    /// What was opened.
    pub(crate) fn describe(&self) -> Answer {
        Answer::Opened { label: self.label.clone(), model: self.model.clone(), serial: self.serial.clone() }
    }

    /// Does what is asked.
    pub(crate) fn run(&self, operation: Operation) -> Result<Answer> {
        match operation {
            Operation::Open { .. } => fail(ErrorKind::Request, "the token is open already"),
            Operation::Wrap { key, algorithm, data } => self.wrap(&key, algorithm, &data),
            Operation::Unwrap { key, algorithm, wrapped } => self.unwrap(&key, algorithm, &wrapped.0),
            Operation::Random { length } => self.random(length),
            Operation::Sign { key, digest } => self.sign(&key, &digest.0),
            Operation::PublicKey { key } => self.public_key(&key),
            Operation::ReadSecret { label } => self.read_secret(&label),
            Operation::WriteSecret { label, value } => self.write_secret(&label, &value),
        }
    }

    fn find(&self, name: &KeyName, class: ObjectClass, key_type: KeyType) -> Result<ObjectHandle> {
        let named = match name {
            KeyName::Label(label) => Attribute::Label(label.clone().into_bytes()),
            KeyName::Id(id) => Attribute::Id(from_hex(id)?),
        };
        let template = [Attribute::Class(class), Attribute::KeyType(key_type), named];
        let found = self.session.find_objects(&template).map_err(device("looking for the key"))?;
        let what = || format!("{key_type:?} {class:?} {name} on token {:?}", self.label);
        match found[..] {
            [key] => Ok(key),
            [] => fail(ErrorKind::NotFound, format!("there is no {}", what())),
            _ => fail(
                ErrorKind::Ambiguous,
                format!("there are {} objects {}, name one by its id", found.len(), what()),
            ),
        }
    }

    fn wrap(&self, key: &KeyName, algorithm: WrapAlgorithm, data: &Secret) -> Result<Answer> {
        if data.0.len() > MAX_WRAP {
            return fail(
                ErrorKind::Request,
                format!("{} bytes to wrap, at most {MAX_WRAP} go", data.0.len()),
            );
        }
        let what = format!("wrapping with {} under key {key}", algorithm.name());
        let wrapped = match oaep(algorithm) {
            Some(mechanism) => {
                let key = self.find(key, ObjectClass::PUBLIC_KEY, KeyType::RSA)?;
                self.session.encrypt(&mechanism, key, &data.0).map_err(device(&what))?
            }
            None => {
                let kek = self.aes_key(key)?;
                let inner = self.session_key(&data.0)?;
                let wrapped = self.session.wrap_key(&Mechanism::AesKeyWrap, kek, inner);
                self.forget(inner)?;
                wrapped.map_err(device(&what))?
            }
        };
        Ok(Answer::Public { bytes: Bytes(wrapped) })
    }

    fn unwrap(&self, key: &KeyName, algorithm: WrapAlgorithm, wrapped: &[u8]) -> Result<Answer> {
        let what = format!("unwrapping with {} under key {key}", algorithm.name());
        let plain = match oaep(algorithm) {
            Some(mechanism) => {
                let key = self.find(key, ObjectClass::PRIVATE_KEY, KeyType::RSA)?;
                self.session.decrypt(&mechanism, key, wrapped).map_err(unwrapping(&what))?
            }
            None => {
                let kek = self.aes_key(key)?;
                let template = inner_template();
                let inner = self
                    .session
                    .unwrap_key(&Mechanism::AesKeyWrap, kek, wrapped, &template)
                    .map_err(unwrapping(&what))?;
                let value = self.value(inner, &what);
                self.forget(inner)?;
                value?
            }
        };
        Ok(Answer::Secret { bytes: Secret::new(plain) })
    }

    fn aes_key(&self, key: &KeyName) -> Result<ObjectHandle> {
        let kek = self.find(key, ObjectClass::SECRET_KEY, KeyType::AES)?;
        let read = self.session.get_attributes(kek, &[AttributeType::ValueLen]);
        match read.map_err(device("length of the key"))?.first() {
            Some(Attribute::ValueLen(length)) if u64::from(**length) == AES_256 => Ok(kek),
            _ => fail(ErrorKind::Algorithm, format!("key {key} is not of 256 bits, as A256KW needs")),
        }
    }

    /// Puts a key into the session, for the token to wrap it.
    fn session_key(&self, value: &[u8]) -> Result<ObjectHandle> {
        let mut template = vec![
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::GENERIC_SECRET),
            Attribute::Value(value.to_vec()),
        ];
        template.extend([
            Attribute::Token(false),
            Attribute::Private(true),
            Attribute::Sensitive(false),
            Attribute::Extractable(true),
        ]);
        self.session.create_object(&template).map_err(device("putting the key into the session"))
    }

    /// Removes an object of the session. A token that cannot is not asked for more.
    fn forget(&self, object: ObjectHandle) -> Result<()> {
        self.session.destroy_object(object).map_err(device("removing the key from the session"))
    }

    fn value(&self, object: ObjectHandle, what: &str) -> Result<Zeroizing<Vec<u8>>> {
        let read = self.session.get_attributes(object, &[AttributeType::Value]).map_err(device(what))?;
        match read.into_iter().next() {
            Some(Attribute::Value(value)) => Ok(Zeroizing::new(value)),
            _ => fail(ErrorKind::Device, format!("{what}: the token does not give out the value")),
        }
    }

    fn random(&self, length: usize) -> Result<Answer> {
        if length > MAX_RANDOM {
            return fail(ErrorKind::Request, format!("{length} random bytes, at most {MAX_RANDOM} go"));
        }
        let mut bytes = Zeroizing::new(vec![0; length]);
        self.session.generate_random_slice(&mut bytes).map_err(device("random bytes"))?;
        Ok(Answer::Secret { bytes: Secret(bytes) })
    }

    fn sign(&self, key: &KeyName, digest: &[u8]) -> Result<Answer> {
        let handle = self.find(key, ObjectClass::PRIVATE_KEY, KeyType::EC)?;
        let what = format!("signing with key {key}");
        let signature = self.session.sign(&Mechanism::Ecdsa, handle, digest).map_err(device(&what))?;
        Ok(Answer::Public { bytes: Bytes(signature) })
    }

    fn public_key(&self, key: &KeyName) -> Result<Answer> {
        let handle = self.find(key, ObjectClass::PUBLIC_KEY, KeyType::EC)?;
        let wanted = [AttributeType::EcParams, AttributeType::EcPoint];
        let read = self.session.get_attributes(handle, &wanted).map_err(device("public key"))?;
        let (mut curve, mut point) = (None, None);
        for attribute in read {
            match attribute {
                Attribute::EcParams(oid) if oid == P256 => curve = Some(("P-256", 65)),
                Attribute::EcParams(oid) if oid == P384 => curve = Some(("P-384", 97)),
                Attribute::EcPoint(der) => point = Some(der),
                _ => {}
            }
        }
        let (Some((curve, length)), Some(der)) = (curve, point) else {
            return fail(ErrorKind::Algorithm, format!("key {key} is neither P-256 nor P-384"));
        };
        // An OCTET STRING around the point; some modules leave it out.
        let point = match der.strip_prefix(&[4, length]) {
            Some(point) if point.len() == usize::from(length) => point.to_vec(),
            _ => der,
        };
        if point.len() != usize::from(length) || point.first() != Some(&4) {
            return fail(ErrorKind::Device, format!("the point of key {key} is no uncompressed point"));
        }
        Ok(Answer::EcKey { curve: curve.to_owned(), point: Bytes(point) })
    }

    fn secrets(&self, label: &str) -> Result<Vec<ObjectHandle>> {
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::GENERIC_SECRET),
            Attribute::Label(label.as_bytes().to_vec()),
        ];
        self.session.find_objects(&template).map_err(device("looking for the secret"))
    }

    fn read_secret(&self, label: &str) -> Result<Answer> {
        match self.secrets(label)?[..] {
            [object] => {
                let value = self.value(object, &format!("reading secret {label:?}"))?;
                Ok(Answer::Secret { bytes: Secret(value) })
            }
            [] => {
                fail(ErrorKind::NotFound, format!("there is no secret {label:?} on token {:?}", self.label))
            }
            _ => fail(ErrorKind::Ambiguous, format!("there is more than one secret {label:?}")),
        }
    }

    fn write_secret(&self, label: &str, value: &Secret) -> Result<Answer> {
        if value.0.is_empty() || value.0.len() > MAX_SECRET {
            return fail(
                ErrorKind::Request,
                format!("a secret has 1 to {MAX_SECRET} bytes, seen {}", value.0.len()),
            );
        }
        let old = self.secrets(label)?;
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::GENERIC_SECRET),
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(false),
            Attribute::Extractable(true),
            Attribute::Label(label.as_bytes().to_vec()),
            Attribute::Value(value.0.to_vec()),
        ];
        // The new one first: when this fails, the old one is still there.
        self.session.create_object(&template).map_err(device("writing the secret"))?;
        for object in old {
            self.session.destroy_object(object).map_err(device("removing the old secret"))?;
        }
        Ok(Answer::Done)
    }
}

/// While unwrapping, a failure whose cause a token does not name is most likely the data: many answer `GeneralError`.
fn unwrapping(what: &str) -> impl Fn(Error) -> HelperError {
    move |error| {
        let vague = matches!(
            &error,
            Error::Pkcs11(RvError::GeneralError | RvError::FunctionFailed | RvError::DataInvalid, _)
        );
        let mut told = device(what)(error);
        if vague {
            told.kind = ErrorKind::Wrapped;
        }
        told
    }
}

/// A key that is unwrapped into the session to be read out.
fn inner_template() -> [Attribute; 6] {
    [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ]
}

fn oaep(algorithm: WrapAlgorithm) -> Option<Mechanism<'static>> {
    let (hash, mgf) = match algorithm {
        WrapAlgorithm::RsaOaep256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
        WrapAlgorithm::RsaOaep => (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
        WrapAlgorithm::A256Kw => return None,
    };
    Some(Mechanism::RsaPkcsOaep(PkcsOaepParams::new(hash, mgf, PkcsOaepSource::empty())))
}

fn from_hex(text: &str) -> Result<Vec<u8>> {
    let digits = text.as_bytes();
    let pair = |pair: &[u8]| -> Option<u8> { u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok() };
    let bytes: Option<Vec<u8>> =
        (digits.len() % 2 == 0 && !digits.is_empty()).then(|| digits.chunks(2).map(pair).collect()).flatten();
    bytes.ok_or_else(|| HelperError::new(ErrorKind::Request, "id of the key is not hexadecimal"))
}

fn find_token(context: &Pkcs11, choice: &TokenChoice) -> Result<Slot> {
    let slots = context.get_slots_with_token().map_err(device("list of tokens"))?;
    let mut seen = Vec::new();
    let mut found = Vec::new();
    for (index, slot) in slots.into_iter().enumerate() {
        // A slot that cannot tell of its token is not the one that is looked for.
        let Ok(info) = context.get_token_info(slot) else { continue };
        let matches = match choice {
            TokenChoice::Label(label) => info.label() == label,
            TokenChoice::Serial(serial) => info.serial_number() == serial,
            TokenChoice::Index(wanted) => index == *wanted,
        };
        if matches {
            found.push(slot);
        }
        seen.push(format!("{index}: label {:?}, serial {:?}", info.label(), info.serial_number()));
    }
    match found[..] {
        [slot] => Ok(slot),
        [] => {
            fail(ErrorKind::Token, format!("there is no token {choice:?}; there are: [{}]", seen.join("; ")))
        }
        _ => {
            fail(ErrorKind::Token, format!("there is more than one token {choice:?}: [{}]", seen.join("; ")))
        }
    }
}
