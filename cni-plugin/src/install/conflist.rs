//! Pure: network configurations of a runtime, with our entry and without.
//!
//! * [`chained`]: ours is the last plugin of the runtime's list; a single plugin becomes a list
//! * [`unchained`]: the list as it was
//! * [`alone`]: a configuration of only ours, for who calls us beside the network (Multus)
//! * [`primary`]: which of a directory's files the runtime uses

use serde_json::{Map, Value, json};

/// The plugin's name on the host stays Istio's.
pub(super) const TYPE: &str = "istio-cni";

/// The configuration with our entry as its last plugin; there is never more than one of it.
///
/// # Errors
/// What is wrong with the configuration.
pub fn chained(configuration: Value, entry: Value) -> Result<Value, &'static str> {
    let Value::Object(configuration) = configuration else {
        return Err("not a JSON object");
    };
    let mut list = if configuration.contains_key("plugins") {
        configuration
    } else if configuration.contains_key("type") {
        wrapped(configuration)
    } else {
        return Err("neither a list of plugins nor a plugin");
    };
    let plugins = list
        .get_mut("plugins")
        .and_then(Value::as_array_mut)
        .ok_or("plugins is not a list")?;
    plugins.retain(|plugin| !is_ours(plugin));
    if plugins.is_empty() {
        return Err("no plugin that makes an interface");
    }
    plugins.push(entry);
    Ok(Value::Object(list))
}

/// The configuration without our entry.
pub fn unchained(mut configuration: Value) -> Value {
    if let Some(plugins) = configuration
        .get_mut("plugins")
        .and_then(Value::as_array_mut)
    {
        plugins.retain(|plugin| !is_ours(plugin));
    }
    configuration
}

/// Only our entry.
pub(super) fn alone(mut entry: Value) -> Value {
    entry["ambit_alone"] = true.into(); // the plugin has no earlier result to pass on
    json!({ "cniVersion": CREATED, "name": TYPE, "plugins": [entry] })
}

/// A single plugin's configuration as a list of one.
pub(super) fn wrapped(mut plugin: Map<String, Value>) -> Map<String, Value> {
    let mut list = Map::new();
    let version = plugin
        .remove("cniVersion")
        .unwrap_or_else(|| CREATED.into());
    list.insert("cniVersion".into(), version);
    list.insert(
        "name".into(),
        plugin
            .remove("name")
            .unwrap_or_else(|| "k8s-pod-network".into()),
    );
    list.insert("plugins".into(), Value::Array(vec![Value::Object(plugin)]));
    list
}

fn is_ours(plugin: &Value) -> bool {
    plugin["type"] == TYPE
}

/// The file a runtime uses: the first by name that is not `ours`.
pub(super) fn primary<'a>(names: impl Iterator<Item = &'a str>, ours: &str) -> Option<&'a str> {
    names.filter(|name| *name != ours && is_network(name)).min()
}

/// Whether a runtime takes a file of that name for a configuration.
pub(super) fn is_network(name: &str) -> bool {
    name.ends_with(".conf") || name.ends_with(".conflist")
}

/// The version of lists we make where the network says none.
const CREATED: &str = "0.3.1";
