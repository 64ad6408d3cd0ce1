//! The answer, for a person.

use std::fmt::Write as _;

use serde_json::Value;

use super::story::{Told, Verdict};

/// The verdict first, then the way there, who is who, each policy, and what would have to change.
pub(super) fn text(told: &Told<'_>) -> String {
    let mut out = String::new();
    let asked = told.answers;
    let verdict = match told.verdict {
        Verdict::Allowed => "ALLOWED",
        Verdict::Refused => "REFUSED",
        Verdict::Unknown => "NOT KNOWN",
    };
    line(
        &mut out,
        &format!(
            "{} -> {}{}: {verdict} (decided at the {})",
            asked.source,
            asked.destination,
            if asked.udp { " by UDP" } else { "" },
            told.decided_at
        ),
    );
    line(&mut out, &format!("  {}", told.because));
    if let (Some(flag), hint) = (&told.flag, told.hint.as_deref().unwrap_or_default()) {
        line(&mut out, &format!("  flag {flag}; look at: {hint}"));
    }
    section(&mut out, "PATH", &told.path);
    section(&mut out, "IDENTITIES", &identities(told));
    section(&mut out, "ENDPOINTS", &endpoints(told));
    section(&mut out, "POLICIES AT THE DESTINATION", &policies(told));
    let opposite = match told.verdict {
        Verdict::Allowed => "TO BE REFUSED",
        Verdict::Refused | Verdict::Unknown => "TO BE ALLOWED",
    };
    section(&mut out, opposite, &told.to_change);
    section(&mut out, "NOT KNOWN", &told.not_known);
    out
}

fn line(out: &mut String, text: &str) {
    // One line, whoever wrote it. Writing to a String does not fail.
    let _ = writeln!(out, "{}", text.trim_end().replace('\n', " "));
}

fn section(out: &mut String, head: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    line(out, "");
    line(out, head);
    for text in lines {
        line(out, &format!("  {text}"));
    }
}

fn identities(told: &Told<'_>) -> Vec<String> {
    let mut all = Vec::new();
    if let Some(left) = &told.answers.leaving {
        all.push(format!("source       {}", person(&left.answer["workload"])));
        let decision = &left.answer["decision"];
        if !decision["waypoint"].is_null() {
            let waypoint = &decision["workload"];
            let identity = waypoint["identity"].as_str().unwrap_or("no identity");
            let uid = waypoint["uid"].as_str().unwrap_or_default();
            all.push(format!("waypoint     {uid}, {identity}"));
        }
    }
    if let Some(there) = &told.answers.arriving {
        all.push(format!(
            "destination  {}",
            person(&there.answer["workload"])
        ));
    }
    all
}

fn person(workload: &Value) -> String {
    let Some(uid) = workload["uid"].as_str() else {
        return "nobody that the mesh knows".to_owned();
    };
    let identity = match workload["inMesh"] == true {
        true => workload["identity"].as_str().unwrap_or("no identity"),
        false => "not in the mesh",
    };
    let node = workload["node"].as_str().unwrap_or_default();
    format!("{uid}, {identity}, node {node}")
}

/// Those that connections do not go to, with the reason.
fn endpoints(told: &Told<'_>) -> Vec<String> {
    let Some(left) = &told.answers.leaving else {
        return Vec::new();
    };
    let of = |found: &Value| -> Vec<String> {
        let shown = found["shown"].as_array().into_iter().flatten();
        let mut lines: Vec<String> = shown
            .map(|it| {
                let text = |key: &str| it[key].as_str().unwrap_or("?").to_owned();
                format!(
                    "{} {} on {}: {}",
                    text("uid"),
                    text("address"),
                    text("node"),
                    text("why")
                )
            })
            .collect();
        let all = found["all"].as_u64().unwrap_or_default();
        if all > lines.len() as u64 {
            lines.push(format!("and {} more", all - lines.len() as u64));
        }
        lines
    };
    let mut all = of(&left.answer["endpoints"]);
    let waypoint = &left.answer["waypoint"];
    if let Some(name) = waypoint["name"].as_str() {
        all.push(format!("of waypoint {name}:"));
        all.extend(
            of(&waypoint["endpoints"])
                .iter()
                .map(|it| format!("  {it}")),
        );
    }
    all
}

fn policies(told: &Told<'_>) -> Vec<String> {
    let Some(there) = &told.answers.arriving else {
        return Vec::new();
    };
    let there = &there.answer;
    let mut all = Vec::new();
    if there["verdict"] != "unguarded" {
        let mode = there["plainText"].as_str().unwrap_or("?");
        all.push(format!("plain text: {mode} (PeerAuthentication)"));
    }
    for policy in there["policies"].as_array().into_iter().flatten() {
        let text = |key: &str| policy[key].as_str().unwrap_or("?");
        let mark = if policy["decides"] == true { "*" } else { " " };
        let matches = if policy["matches"] == true {
            "matches"
        } else {
            "does not match"
        };
        let mut words = format!("{mark} {} {} {matches}", text("action"), text("object"));
        if policy["dryRun"] == true {
            words.push_str(", dry run: only noted");
        }
        if policy["decides"] == true {
            words.push_str(", decides");
        }
        all.push(words);
        all.extend(conditions(policy));
    }
    let missing = there["missing"].as_array().into_iter().flatten();
    all.extend(
        missing
            .filter_map(Value::as_str)
            .map(|name| format!("? {name}: named, and not known to ztunnel")),
    );
    all
}

/// Each condition with what it meets.
fn conditions(policy: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for (at, group) in policy["groups"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let flat = group
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|rule| rule.as_array().into_iter().flatten())
            .flat_map(|found| found.as_array().into_iter().flatten());
        for condition in flat {
            let wanted: Vec<_> = condition["wanted"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            let holds = if condition["holds"] == true {
                "holds"
            } else {
                "does not hold"
            };
            lines.push(format!(
                "    rule {}: {} [{}] {holds}: it is {}",
                at + 1,
                condition["field"].as_str().unwrap_or("?"),
                wanted.join(", "),
                condition["is"].as_str().unwrap_or("?")
            ));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::ask::{Asked, Heard};
    use super::super::story::told;
    use super::*;

    #[test]
    fn a_denial_shows_the_way_the_policy_its_condition_and_what_to_change() {
        let heard = |proxy: &str, answer| {
            Some(Heard {
                proxy: proxy.to_owned(),
                decides: true,
                answer,
            })
        };
        let asked = Asked {
            source: "shop/client".into(),
            destination: "web.shop:80".into(),
            leaving: heard(
                "ztunnel of node a",
                json!({
                    "captured": true,
                    "workload": { "uid": "c//Pod/shop/client", "inMesh": true, "identity": "spiffe://td/ns/shop/sa/client", "node": "a" },
                    "endpoints": { "all": 2, "eligible": 1, "shown": [
                        { "uid": "web-1", "address": "10.0.0.2", "node": "b", "why": "can be chosen", "eligible": true },
                        { "uid": "web-2", "address": "10.0.0.3", "node": "b", "why": "is not ready", "eligible": false }] },
                    "decision": { "goes": "tunnel", "to": "10.0.0.2:15008", "asksFor": "10.0.0.2:8080",
                        "because": "the destination is in the mesh", "workload": { "uid": "web-1" } },
                }),
            ),
            arriving: heard(
                "ztunnel of node b",
                json!({
                    "verdict": "denied", "because": "explicitly denied by: shop/no", "flag": "DENY", "hint": "the AuthorizationPolicy",
                    "address": "10.0.0.2:8080", "plainText": "PERMISSIVE", "sourceIdentity": "spiffe://td/ns/shop/sa/client",
                    "workload": { "uid": "web-1", "inMesh": true, "identity": "spiffe://td/ns/shop/sa/web", "node": "b" },
                    "policies": [{ "action": "DENY", "object": "AuthorizationPolicy shop/no", "matches": true, "decides": true, "dryRun": false,
                        "groups": [[[[{ "field": "operation.ports", "wanted": ["8080"], "is": "8080", "holds": true }]]]] }],
                    "missing": [], "toChange": ["AuthorizationPolicy shop/no must not match any more"],
                }),
            ),
            ..Asked::default()
        };
        let expected = "\
shop/client -> web.shop:80: REFUSED (decided at the destination)
  explicitly denied by: shop/no
  flag DENY; look at: the AuthorizationPolicy

PATH
  ztunnel of node a: tunnel to web-1 (10.0.0.2:15008), asking for 10.0.0.2:8080: the destination is in the mesh
  ztunnel of node b: arrives as spiffe://td/ns/shop/sa/client at web-1 (10.0.0.2:8080): denied: explicitly denied by: shop/no

IDENTITIES
  source       c//Pod/shop/client, spiffe://td/ns/shop/sa/client, node a
  destination  web-1, spiffe://td/ns/shop/sa/web, node b

ENDPOINTS
  web-1 10.0.0.2 on b: can be chosen
  web-2 10.0.0.3 on b: is not ready

POLICIES AT THE DESTINATION
  plain text: PERMISSIVE (PeerAuthentication)
  * DENY AuthorizationPolicy shop/no matches, decides
      rule 1: operation.ports [8080] holds: it is 8080

TO BE ALLOWED
  AuthorizationPolicy shop/no must not match any more

NOT KNOWN
  whether the app listens on 10.0.0.2:8080
";
        assert_eq!(text(&told(&asked)), expected);
    }
}
