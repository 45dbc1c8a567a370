//! `${name}` in text scalars, replaced by a site's `vars`; no templating of YAML.

use std::collections::BTreeMap;

use serde_json::Value;

use super::schema::escape;

/// What a site defines.
pub type Vars = BTreeMap<String, Value>;

/// A variable that is used and not defined, at a JSON pointer.
#[derive(Debug, PartialEq, Eq)]
pub struct Undefined {
    /// Where.
    pub pointer: String,
    /// Its name.
    pub name: String,
}

/// Whether any text in the value uses a variable.
#[must_use]
pub fn uses(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains("${"),
        Value::Array(items) => items.iter().any(uses),
        Value::Object(map) => map.values().any(uses),
        _ => false,
    }
}

/// The value with all variables replaced. A text that is one variable and nothing else takes its type.
pub fn replace(value: &Value, vars: &Vars) -> Result<Value, Vec<Undefined>> {
    let mut undefined = Vec::new();
    let replaced = walk(value, vars, "", &mut undefined);
    if undefined.is_empty() { Ok(replaced) } else { Err(undefined) }
}

fn walk(value: &Value, vars: &Vars, pointer: &str, undefined: &mut Vec<Undefined>) -> Value {
    match value {
        Value::String(text) => text_value(text, vars, pointer, undefined),
        Value::Array(items) => {
            let each = items.iter().enumerate();
            each.map(|(n, item)| walk(item, vars, &format!("{pointer}/{n}"), undefined)).collect()
        }
        Value::Object(map) => {
            let each = map.iter();
            let walked = each.map(|(k, v)| (k.clone(), walk(v, vars, &format!("{pointer}/{}", escape(k)), undefined)));
            Value::Object(walked.collect())
        }
        other => other.clone(),
    }
}

fn text_value(text: &str, vars: &Vars, pointer: &str, undefined: &mut Vec<Undefined>) -> Value {
    let mut look = |name: &str| {
        let found = vars.get(name);
        if found.is_none() {
            undefined.push(Undefined { pointer: pointer.to_owned(), name: name.to_owned() });
        }
        found
    };
    if let Some(name) = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'))
        && !name.contains("${")
    {
        return look(name).cloned().unwrap_or(Value::Null);
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        out.push_str(before);
        let Some((name, tail)) = after.split_once('}') else {
            out.push_str("${");
            rest = after;
            continue;
        };
        match look(name) {
            Some(Value::String(value)) => out.push_str(value),
            Some(other) => out.push_str(&other.to_string()),
            None => {}
        }
        rest = tail;
    }
    out.push_str(rest);
    Value::String(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn vars() -> Vars {
        let all = json!({"net": "10.1.0.0/24", "port": 5060, "on": true});
        all.as_object().unwrap().clone().into_iter().collect()
    }

    #[test]
    fn a_text_that_is_one_variable_takes_its_type() {
        let replaced = replace(&json!({"a": "${port}", "b": ["${on}", "${net}"]}), &vars()).unwrap();
        assert_eq!(replaced, json!({"a": 5060, "b": [true, "10.1.0.0/24"]}));
    }

    #[test]
    fn variables_within_a_text_stay_text() {
        let replaced = replace(&json!("${port}-${port} ${on}"), &vars()).unwrap();
        assert_eq!(replaced, json!("5060-5060 true"));
    }

    #[test]
    fn every_undefined_variable_is_told_with_its_place() {
        let missing = replace(&json!({"a/b": ["x", "${nope} ${neither}"]}), &vars()).unwrap_err();
        let told: Vec<_> = missing.iter().map(|m| (m.pointer.as_str(), m.name.as_str())).collect();
        assert_eq!(told, [("/a~1b/1", "nope"), ("/a~1b/1", "neither")]);
    }

    #[test]
    fn what_is_no_variable_stays() {
        for text in ["$port", "${port", "}${", "a ${", "$${"] {
            assert_eq!(replace(&json!(text), &vars()), Ok(json!(text)), "{text}");
        }
        assert!(!uses(&json!({"a": ["$x", 1, null]})) && uses(&json!({"a": ["${x}"]})));
    }

    #[test]
    fn a_value_is_not_replaced_again() {
        let vars = Vars::from([("a".to_owned(), json!("${b}")), ("b".to_owned(), json!("x"))]);
        assert_eq!(replace(&json!("${a}"), &vars), Ok(json!("${b}")));
    }
}
