//! Wishes laid over an object, as a strategic merge patch of Kubernetes; and what may not be wished.
//!
//! Objects are merged field by field and `null` takes a field away. Lists whose items have a name are merged item by
//! item ([`KEYED`]); all others are replaced. `$patch: delete` on an item takes it away, `$patch: replace` on a list's
//! item or an object lets nothing of what was there stay.

use serde_json::{Map, Value};

use super::{Piece, PieceKind};

/// Lays `wish` over `onto`.
pub fn lay(onto: &mut Value, wish: &Value) {
    let Value::Object(wish) = wish else {
        *onto = wish.clone();
        return;
    };
    if !onto.is_object() || wish.get(DIRECTIVE).is_some_and(|it| it == "replace") {
        *onto = Value::Object(Map::new());
    }
    let Value::Object(fields) = onto else { return };
    for (field, value) in wish {
        match value {
            Value::Null => drop(fields.remove(field)),
            _ if field == DIRECTIVE => {}
            Value::Array(items) if keys(field).is_some() => {
                let before = fields.entry(field.clone()).or_insert(Value::Null);
                list(before, items, keys(field).unwrap_or_default());
            }
            Value::Object(_) => lay(fields.entry(field.clone()).or_insert(Value::Null), value),
            _ => drop(fields.insert(field.clone(), value.clone())),
        }
    }
}

/// Item by item, by the first of `names` that an item has.
fn list(before: &mut Value, wishes: &[Value], names: &[&str]) {
    let mut items = match before.take() {
        Value::Array(items) => items,
        _ => Vec::new(),
    };
    if wishes
        .iter()
        .any(|it| is_directive(it, "replace") && only_directive(it))
    {
        items.clear();
    }
    for wish in wishes {
        if only_directive(wish) {
            continue;
        }
        let name = names.iter().find(|name| wish.get(**name).is_some());
        let same = |item: &Value| name.is_some_and(|name| item.get(*name) == wish.get(*name));
        match items.iter().position(same) {
            Some(at) if is_directive(wish, "delete") => drop(items.remove(at)),
            Some(at) => lay(&mut items[at], wish),
            None if is_directive(wish, "delete") => {}
            None => {
                let mut fresh = Value::Null;
                lay(&mut fresh, wish);
                items.push(fresh);
            }
        }
    }
    *before = Value::Array(items);
}

fn is_directive(wish: &Value, what: &str) -> bool {
    wish.get(DIRECTIVE).is_some_and(|it| it == what)
}

fn only_directive(wish: &Value) -> bool {
    wish.as_object()
        .is_some_and(|it| it.len() == 1 && it.contains_key(DIRECTIVE))
}

fn keys(field: &str) -> Option<&'static [&'static str]> {
    let found = KEYED.iter().find(|(name, _)| *name == field)?;
    Some(found.1)
}

/// Whether `piece` is still what a waypoint may consist of; `before`: without wishes. Whoever may write a Gateway and a
/// ConfigMap has our hands by them: they must not reach beyond the waypoint's namespace and its pods' sandbox, nor make
/// what is found by its labels and its owner hard to find.
///
/// # Errors
/// The first field that may not be so, and why.
pub fn check(before: &Piece, piece: &Piece) -> Result<(), String> {
    let key = piece.kind.parameter();
    same_ends(before, piece).map_err(|field| {
        format!("{key}: {field} says whose it is or how it is found, and cannot be changed")
    })?;
    let Some(pod) = piece.object.pointer("/spec/template/spec") else {
        return Ok(());
    };
    sandboxed(pod)
        .map_err(|field| format!("{key}: {field} would let the waypoint out of its pod's sandbox"))
}

/// What must stay as it was.
fn same_ends(before: &Piece, piece: &Piece) -> Result<(), String> {
    let fixed: &[&str] = match piece.kind {
        PieceKind::Deployment => &[
            "/spec/selector",
            "/spec/template/spec/serviceAccountName",
            "/spec/template/spec/serviceAccount",
        ],
        // Nodes of the whole cluster lead what goes to such an address to the Service.
        PieceKind::Service => &["/spec/selector", "/spec/externalIPs"],
        PieceKind::PodDisruptionBudget => &["/spec/selector"],
        PieceKind::HorizontalPodAutoscaler => &["/spec/scaleTargetRef"],
        PieceKind::ServiceAccount => &[],
    };
    let at = |object: &Value, path: &str| object.pointer(path).cloned();
    for path in ALWAYS.iter().chain(fixed) {
        if at(&piece.object, path) != at(&before.object, path) {
            return Err(path[1..].replace('/', "."));
        }
    }
    for labels in ["/metadata/labels", "/spec/template/metadata/labels"] {
        for label in OURS {
            let of = |object: &Value| at(object, labels).and_then(|all| all.get(label).cloned());
            if of(&piece.object) != of(&before.object) {
                return Err(format!("label {label}"));
            }
        }
    }
    Ok(())
}

/// Of a pod's specification.
fn sandboxed(pod: &Value) -> Result<(), String> {
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        if pod.get(field).is_some_and(|it| it != &Value::Bool(false)) {
            return Err(field.to_owned());
        }
    }
    let volumes = pod.get("volumes").and_then(Value::as_array);
    if volumes
        .into_iter()
        .flatten()
        .any(|it| it.get("hostPath").is_some())
    {
        return Err("a volume of type hostPath".to_owned());
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in pod
            .get(list)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let context = container.get("securityContext").unwrap_or(&Value::Null);
            for field in ["privileged", "allowPrivilegeEscalation"] {
                if context
                    .get(field)
                    .is_some_and(|it| it != &Value::Bool(false))
                {
                    return Err(format!("securityContext.{field}"));
                }
            }
            let added = context.pointer("/capabilities/add");
            if added.is_some_and(|it| it.as_array().is_none_or(|it| !it.is_empty())) {
                return Err("securityContext.capabilities.add".to_owned());
            }
            let ports = container.get("ports").and_then(Value::as_array);
            if ports
                .into_iter()
                .flatten()
                .any(|it| it.get("hostPort").is_some())
            {
                return Err("a hostPort".to_owned());
            }
        }
    }
    Ok(())
}

/// Of every kind.
const ALWAYS: [&str; 6] = [
    "/apiVersion",
    "/kind",
    "/metadata/name",
    "/metadata/namespace",
    "/metadata/ownerReferences",
    "/metadata/finalizers",
];
/// Labels that find what belongs to a waypoint.
const OURS: [&str; 4] = [
    api::k8s::labels::GATEWAY_NAME,
    api::k8s::labels::GATEWAY_MANAGED,
    api::k8s::labels::DATAPLANE_MODE,
    api::k8s::labels::TUNNEL,
];
const DIRECTIVE: &str = "$patch";
/// Lists that are merged item by item, and what names an item there, as Kubernetes' types declare it.
const KEYED: [(&str, &[&str]); 12] = [
    ("containers", &["name"]),
    ("initContainers", &["name"]),
    ("env", &["name"]),
    ("ports", &["containerPort", "port"]),
    ("volumeMounts", &["mountPath"]),
    ("volumes", &["name"]),
    ("imagePullSecrets", &["name"]),
    ("hostAliases", &["ip"]),
    ("topologySpreadConstraints", &["topologyKey"]),
    ("ownerReferences", &["uid"]),
    ("secrets", &["name"]),
    ("resourceClaims", &["name"]),
];
