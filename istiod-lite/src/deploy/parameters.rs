//! Parameters: a ConfigMap whose keys say which object of a waypoint is changed, and whose values say how, as YAML.

use std::collections::BTreeMap;

use serde_json::Value;

use super::render::{asked_for, render};
use super::{Order, Pattern, Piece, PieceKind, overlay};

/// What one ConfigMap asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters(BTreeMap<PieceKind, Value>);

impl Parameters {
    /// Reads the data of a ConfigMap.
    ///
    /// # Errors
    /// The key that is not known, or whose value is no object, and why.
    pub fn read(data: &BTreeMap<String, String>) -> Result<Self, String> {
        let mut all = BTreeMap::new();
        for (key, text) in data {
            let Some(kind) = PieceKind::ALL.into_iter().find(|it| it.parameter() == key) else {
                let known = PieceKind::ALL.map(PieceKind::parameter).join(", ");
                return Err(format!("key {key} is none of {known}"));
            };
            let value: Value = serde_saphyr::from_str(text)
                .map_err(|error| format!("key {key} is no YAML: {}", first_line(&error)))?;
            let taken_away = value.is_null() && kind.is_optional();
            if !value.is_object() && !taken_away {
                return Err(format!("key {key} holds no object"));
            }
            all.insert(kind, value);
        }
        Ok(Self(all))
    }

    /// Changes the objects of a waypoint as asked for.
    fn lay(&self, pieces: &mut Vec<Piece>, order: &Order, pattern: &Pattern) {
        for (kind, wish) in &self.0 {
            let at = pieces.iter().position(|piece| piece.kind == *kind);
            if wish.is_null() {
                at.map(|at| pieces.remove(at));
                continue;
            }
            let at = match (at, asked_for(*kind, order, pattern)) {
                (Some(at), _) => at,
                (None, Some(fresh)) => {
                    pieces.push(fresh);
                    pieces.len() - 1
                }
                (None, None) => continue,
            };
            overlay::lay(&mut pieces[at].object, wish);
        }
    }

    fn says_replicas(&self) -> bool {
        let wish = self.0.get(&PieceKind::Deployment);
        wish.is_some_and(|wish| wish.pointer("/spec/replicas").is_some())
    }
}

/// What a waypoint consists of: as rendered, with `wishes` laid over it, the last last.
///
/// # Errors
/// What may not be wished, and why.
pub fn made(order: &Order, pattern: &Pattern, wishes: &[Parameters]) -> Result<Vec<Piece>, String> {
    let rendered = render(order, pattern);
    let mut pieces = rendered.clone();
    for wish in wishes {
        wish.lay(&mut pieces, order, pattern);
    }
    let scaler = PieceKind::HorizontalPodAutoscaler;
    // Who scales says how many: two who say it would take turns.
    let scaled = pieces.iter().any(|it| it.kind == scaler);
    if scaled && !wishes.iter().any(Parameters::says_replicas) {
        for spec in pieces.iter_mut().filter_map(|it| it.object.get_mut("spec")) {
            spec.as_object_mut().map(|spec| spec.remove("replicas"));
        }
    }
    pieces.sort_by_key(|piece| piece.kind);
    for piece in &pieces {
        let before = rendered.iter().find(|it| it.kind == piece.kind).cloned();
        let before = before.or_else(|| asked_for(piece.kind, order, pattern));
        if let Some(before) = before {
            overlay::check(&before, piece)?;
        }
    }
    Ok(pieces)
}

fn first_line(error: &impl ToString) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}
