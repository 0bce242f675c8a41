use serde_json::json;

/// The error codes of the distribution spec ("Error Codes"), and `UNAVAILABLE` of Docker's registry for
/// which the spec has no word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The blob is not known.
    BlobUnknown,
    /// The digest is malformed.
    DigestInvalid,
    /// The manifest is not known.
    ManifestUnknown,
    /// The repository name is malformed.
    NameInvalid,
    /// The repository is not known.
    NameUnknown,
    /// A page size that is no number (Docker's registry).
    PaginationNumberInvalid,
    /// The ranges asked for are not served (Docker's registry).
    RangeInvalid,
    /// Not allowed here.
    Denied,
    /// The operation does not exist here.
    Unsupported,
    /// Too many requests.
    TooManyRequests,
    /// Cannot be had at the moment (Docker's registry).
    Unavailable,
    /// Anything else.
    Unknown,
}

impl ErrorCode {
    /// The code as it stands in the error body.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorCode::BlobUnknown => "BLOB_UNKNOWN",
            ErrorCode::DigestInvalid => "DIGEST_INVALID",
            ErrorCode::ManifestUnknown => "MANIFEST_UNKNOWN",
            ErrorCode::NameInvalid => "NAME_INVALID",
            ErrorCode::NameUnknown => "NAME_UNKNOWN",
            ErrorCode::PaginationNumberInvalid => "PAGINATION_NUMBER_INVALID",
            ErrorCode::RangeInvalid => "RANGE_INVALID",
            ErrorCode::Denied => "DENIED",
            ErrorCode::Unsupported => "UNSUPPORTED",
            ErrorCode::TooManyRequests => "TOOMANYREQUESTS",
            ErrorCode::Unavailable => "UNAVAILABLE",
            ErrorCode::Unknown => "UNKNOWN",
        }
    }
}

/// The error envelope of the spec with one error in it.
pub fn error_body(code: ErrorCode, message: &str) -> String {
    json!({ "errors": [{ "code": code.as_str(), "message": message }] }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_escaped() {
        let body = error_body(ErrorCode::NameInvalid, "a \"name\"\n");
        assert_eq!(body, r#"{"errors":[{"code":"NAME_INVALID","message":"a \"name\"\n"}]}"#);
    }
}
