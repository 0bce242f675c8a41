//! The OpenAPI document says what is answered, no more and no less.

use std::collections::BTreeSet;

use http::Method;
use serde_json::{Value, json};

use crate::support::faults::{Fault, Match, Times};
use crate::support::house::House;
use crate::support::images::Image;
use crate::support::registry::FakeRegistry;

/// Where `value` is not what `schema` says, each with its path.
fn faults(document: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    if let Some(name) = schema["$ref"].as_str() {
        let schema = document.pointer(name.strip_prefix('#').unwrap()).unwrap_or_else(|| panic!("{name}"));
        return faults(document, schema, value, at);
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let tries = choices.iter().map(|choice| faults(document, choice, value, at));
        return tries.min_by_key(Vec::len).unwrap();
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        other => panic!("{at}: {other} is no type"),
    };
    let is_one = types.contains(&type_of(value)) || (types.contains(&"number") && value.is_number());
    if !is_one {
        return vec![format!("{at}: {value} is not of {types:?}")];
    }
    match value {
        Value::Array(items) => items
            .iter()
            .flat_map(|item| faults(document, &schema["items"], item, &format!("{at}[]")))
            .collect(),
        Value::Object(fields) => {
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let missing = required.filter(|name| !fields.contains_key(*name));
            let missing = missing.map(|name| format!("{at}.{name} is missing"));
            let wrong = fields.iter().flat_map(|(name, field)| {
                let own = schema["properties"].get(name).or(schema.get("additionalProperties"));
                let at = format!("{at}.{name}");
                own.map_or_else(
                    || vec![format!("{at} is not described")],
                    |own| faults(document, own, field, &at),
                )
            });
            missing.chain(wrong).collect()
        }
        _ => Vec::new(),
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

async fn document(house: &House) -> Value {
    house.admin().get("/api/v1/openapi.json").await.json()
}

#[tokio::test]
async fn every_route_stands_there_with_its_methods() {
    let house = House::over(&FakeRegistry::start().await).await;
    let document = document(&house).await;
    let paths = document["paths"].as_object().unwrap();
    let list = house.admin().get("/").await.text();
    let listed =
        list.lines().filter(|line| line.starts_with('/')).map(|line| line.split(' ').next().unwrap());
    assert_eq!(listed.collect::<BTreeSet<_>>(), paths.keys().map(String::as_str).collect());
    for (path, operations) in paths {
        for (name, method) in [("get", Method::GET), ("post", Method::POST), ("put", Method::PUT)] {
            let is_described = operations.get(name).is_some();
            // The head alone: events have no end.
            let status = house.admin().stream(method, path, &[], bytes::Bytes::new()).await.unwrap().status;
            assert_eq!(status != 405, is_described, "{name} {path}: {status}");
            let is_told = operations[name]["responses"].get(status.to_string()).is_some();
            assert!(!is_described || is_told, "{name} {path} answers {status}");
        }
    }
}

#[tokio::test]
async fn answers_are_as_they_are_described() {
    let fake = FakeRegistry::start().await;
    fake.push("library/app", "v1", &Image::multi_platform(1, &[1000]));
    let second = Image::layers(2, &[1000]);
    fake.push("library/app", "v2", &second);
    fake.push("library/app", "v3", &Image::layers(3, &[1000]));
    let house = House::over(&fake).await;
    house.client().pull("library/app", "v1").await.unwrap();
    house.client().pull("library/app", "v2").await.unwrap();
    fake.fault(Match::manifests(), Times::Once, Fault::status(500));
    assert!(house.client().pull("library/app", "v3").await.is_err());
    house.settled().await;
    let rollback = format!("/api/v1/rollback?image=app:v2&to={}", second.digest());
    let document = document(&house).await;
    let mut described: BTreeSet<(String, &str)> = BTreeSet::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        let methods = ["get", "post"].into_iter().filter(|name| {
            operations[name].pointer("/responses/200/content/application~1json/schema/$ref").is_some()
        });
        described.extend(methods.map(|name| (path.clone(), name)));
    }
    for (method, path, status) in [
        ("get", "/api/v1/status", 200),
        ("get", "/api/v1/history?span=day", 200),
        ("get", "/api/v1/history?span=x", 400),
        ("get", "/api/v1/eviction", 200),
        ("get", "/api/v1/budgets", 200),
        ("get", "/api/v1/explain?image=app:v1", 200),
        ("get", "/api/v1/explain?image=ghcr.io/a/b", 404),
        ("get", "/api/v1/images?limit=1", 200),
        ("get", "/api/v1/image?image=app:v1", 200),
        ("post", "/api/v1/refresh?image=app:v1", 200),
        ("post", "/api/v1/pin?image=app:v1", 200),
        ("get", "/api/v1/tag-history?image=app:v1", 200),
        ("post", "/api/v1/rollback?image=app:v1&to=sha256", 404),
        ("post", &rollback, 200),
        ("post", "/api/v1/release?image=app:v2", 200),
        ("post", "/api/v1/remove?image=app:v1", 409),
        ("post", "/api/v1/unpin?image=app:v1", 200),
        ("post", "/api/v1/remove?image=app:v1", 200),
        ("post", "/api/v1/matching?image=app:v*", 200),
        ("post", "/api/v1/matching?image=app", 400),
        ("get", "/api/v1/warm", 200),
        ("get", "/api/v1/missing", 200),
        ("post", "/api/v1/missing", 200),
        ("post", "/api/v1/lacking", 200),
        (
            "post",
            "/api/v1/blob?digest=sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
            200,
        ),
        ("post", "/api/v1/blob?digest=sha256:x", 400),
        ("post", "/api/v1/adopt", 200),
        ("post", "/api/v1/scrub", 200),
        ("get", "/api/v1/scrub", 200),
    ] {
        let verb = if method == "get" { Method::GET } else { Method::POST };
        let body = match path.split('?').next().unwrap() {
            "/api/v1/lacking" => json!({ "digests": [second.digest()] }).to_string(),
            "/api/v1/adopt" => {
                json!({ "image": "app:v9", "digest": second.digest(), "needs": [] }).to_string()
            }
            // What the digest above is of.
            "/api/v1/blob" => "x".to_owned(),
            _ => String::new(),
        };
        let mut answer = house.admin().stream(verb, path, &[], body.into()).await.unwrap();
        let (told, _) = answer.read_to_end().await;
        let told = String::from_utf8_lossy(&told);
        assert_eq!(answer.status, status, "{path}: {told}");
        let bare = path.split('?').next().unwrap();
        let schema = &document["paths"][bare][method]["responses"][status.to_string()]["content"]["application/json"]
            ["schema"];
        let faults = faults(&document, schema, &serde_json::from_str(&told).unwrap(), path);
        assert!(faults.is_empty(), "{faults:#?}");
        if status == 200 {
            described.remove(&(bare.to_owned(), method));
        }
    }
    assert_eq!(described, BTreeSet::new(), "every answer was looked at");
}
