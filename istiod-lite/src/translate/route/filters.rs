//! What is done to requests and answers.

use api::k8s::routes::{
    Cors, ExternalAuth, Filter, Header, HeaderModifier, Mirror, PathModifier, Redirect, Rewrite,
};
use api::waypoint as wire;
use wire::filter::Filter as To;
use wire::path_change::Change;
use wire::string_match::Match as Text;

use super::matches::{header_name, unknown};
use super::rules::Pass;

/// One filter; none if it does nothing. What stops the route from being taken is the error; what
/// only stops the rule becomes a filter that answers 500.
pub(super) fn filter(
    pass: &mut Pass<'_>,
    filter: &Filter,
    place: &str,
) -> Result<Option<wire::Filter>, String> {
    let missing = || format!("type is {}, but its field is missing", filter.r#type);
    let made = match filter.r#type.as_str() {
        "RequestHeaderModifier" => {
            let it = filter.request_header_modifier.as_ref();
            To::RequestHeaders(headers(it.ok_or_else(missing)?)?)
        }
        "ResponseHeaderModifier" => {
            let it = filter.response_header_modifier.as_ref();
            To::ResponseHeaders(headers(it.ok_or_else(missing)?)?)
        }
        "RequestRedirect" if pass.is_http() => To::Redirect(redirect(
            filter.request_redirect.as_ref().ok_or_else(missing)?,
        )?),
        "URLRewrite" if pass.is_http() => {
            To::Rewrite(rewrite(filter.url_rewrite.as_ref().ok_or_else(missing)?)?)
        }
        "RequestMirror" => {
            let it = filter.request_mirror.as_ref().ok_or_else(missing)?;
            match mirror(pass, it)? {
                Some(mirror) => To::Mirror(mirror),
                None => return Ok(None),
            }
        }
        "CORS" if pass.is_http() => To::Cors(cors(filter.cors.as_ref().ok_or_else(missing)?)?),
        "ExternalAuth" if pass.is_http() => {
            let it = filter.external_auth.as_ref().ok_or_else(missing)?;
            authorizer(pass, it, place)?
        }
        "ExtensionRef" => {
            let it = filter.extension_ref.as_ref().ok_or_else(missing)?;
            let text = format!("nothing here knows what {} {} does", it.kind, it.name);
            pass.unresolved("InvalidKind", format!("{place}: {text}"));
            To::Unknown(text)
        }
        other => {
            let text = format!(
                "filter {other:?} is not supported in a {}",
                pass.kind.name()
            );
            pass.unsupported("UnsupportedValue", format!("{place}: {text}"));
            To::Unknown(text)
        }
    };
    Ok(Some(wire::Filter { filter: Some(made) }))
}

fn headers(modifier: &HeaderModifier) -> Result<wire::HeaderChange, String> {
    let header = |it: &Header| {
        if http::HeaderValue::from_str(&it.value).is_err() {
            return Err(format!(
                "header {}: {:?} is no value of a header",
                it.name, it.value
            ));
        }
        Ok(wire::Header {
            name: header_name(&it.name)?,
            value: it.value.clone(),
        })
    };
    Ok(wire::HeaderChange {
        set: modifier.set.iter().map(header).collect::<Result<_, _>>()?,
        add: modifier.add.iter().map(header).collect::<Result<_, _>>()?,
        remove: modifier
            .remove
            .iter()
            .map(|it| header_name(it))
            .collect::<Result<_, _>>()?,
    })
}

fn redirect(redirect: &Redirect) -> Result<wire::Redirect, String> {
    let scheme = redirect.scheme.clone().unwrap_or_default();
    if !matches!(scheme.as_str(), "" | "http" | "https") {
        return Err(unknown("scheme", &scheme, &["http", "https"]));
    }
    let status = redirect.status_code.unwrap_or(302);
    let status = u32::try_from(status).unwrap_or_default();
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        return Err(format!("statusCode: {status} sends nobody elsewhere"));
    }
    Ok(wire::Redirect {
        scheme,
        hostname: redirect.hostname.clone().unwrap_or_default(),
        path: redirect.path.as_ref().map(path).transpose()?,
        port: redirect.port.map(port).transpose()?.unwrap_or_default(),
        status,
        strip_query: false,
    })
}

fn rewrite(rewrite: &Rewrite) -> Result<wire::Rewrite, String> {
    Ok(wire::Rewrite {
        hostname: rewrite.hostname.clone().unwrap_or_default(),
        path: rewrite.path.as_ref().map(path).transpose()?,
    })
}

fn path(modifier: &PathModifier) -> Result<wire::PathChange, String> {
    let change = match modifier.r#type.as_str() {
        "ReplaceFullPath" => Change::Full(modifier.replace_full_path.clone().unwrap_or_default()),
        "ReplacePrefixMatch" => {
            Change::Prefix(modifier.replace_prefix_match.clone().unwrap_or_default())
        }
        other => {
            let known = ["ReplaceFullPath", "ReplacePrefixMatch"];
            return Err(unknown("path.type", other, &known));
        }
    };
    let (Change::Full(text) | Change::Prefix(text)) = &change else {
        return Ok(wire::PathChange::default());
    };
    if text
        .bytes()
        .any(|byte| byte <= b' ' || byte == 0x7f || !byte.is_ascii())
    {
        return Err(format!("path: {text:?} cannot be the path of a request"));
    }
    Ok(wire::PathChange {
        change: Some(change),
    })
}

pub(super) fn port(port: i32) -> Result<u32, String> {
    match u16::try_from(port) {
        Ok(port) if port > 0 => Ok(port.into()),
        _ => Err(format!("port: {port} is no port")),
    }
}

/// One whose backend cannot be had is left out: it is nobody's answer.
fn mirror(pass: &mut Pass<'_>, mirror: &Mirror) -> Result<Option<wire::Mirror>, String> {
    let fraction = match (mirror.percent, &mirror.fraction) {
        (Some(_), Some(_)) => return Err("both percent and fraction are set".into()),
        (Some(percent), None) => Some((percent, 100)),
        (None, Some(it)) => Some((it.numerator, it.denominator.unwrap_or(100))),
        (None, None) => None,
    };
    let fraction = fraction.map(|(numerator, denominator)| {
        let both = (u32::try_from(numerator), u32::try_from(denominator));
        match both {
            (Ok(numerator), Ok(denominator)) if denominator > 0 && numerator <= denominator => {
                Ok(wire::Fraction {
                    numerator,
                    denominator,
                })
            }
            _ => Err(format!("{numerator} of {denominator} is no share")),
        }
    });
    let fraction = fraction.transpose()?;
    let Some(service) = pass.resolved(&mirror.backend_ref) else {
        return Ok(None);
    };
    Ok(Some(wire::Mirror {
        backend: Some(wire::Backend {
            to: Some(wire::backend::To::Service(service)),
            weight: 1,
            ..wire::Backend::default()
        }),
        fraction,
    }))
}

fn cors(cors: &Cors) -> Result<wire::Cors, String> {
    let stars = |origin: &&String| origin.as_str() == "*";
    let origins = cors.allow_origins.iter().filter(|it| !stars(it));
    Ok(wire::Cors {
        any_origin: cors.allow_origins.iter().any(|it| stars(&it)),
        origins: origins.map(|it| origin(it)).collect::<Result<_, _>>()?,
        credentials: cors.allow_credentials.unwrap_or(false),
        methods: cors.allow_methods.clone(),
        headers: cors.allow_headers.clone(),
        expose: cors.expose_headers.clone(),
        max_age_seconds: cors.max_age.map_or(Ok(5), |it| {
            u64::try_from(it).map_err(|_| format!("maxAge: {it} is no time"))
        })?,
        forward_unmatched: false,
    })
}

/// A star in the host stands for any number of its labels.
fn origin(origin: &str) -> Result<wire::StringMatch, String> {
    let Some((scheme @ ("http" | "https"), host)) = origin.split_once("://") else {
        return Err(format!(
            "allowOrigins: {origin:?} is neither * nor http(s)://host"
        ));
    };
    if host.is_empty() || host.contains('/') {
        return Err(format!(
            "allowOrigins: {origin:?} is no origin: it ends with its port"
        ));
    }
    let r#match = match host.split_once('*') {
        None => Text::Exact(origin.to_owned()),
        Some((before, after)) => Text::Regex(format!(
            "{scheme}://{}[^/]+{}",
            regex::escape(before),
            regex::escape(after)
        )),
    };
    Ok(wire::StringMatch {
        r#match: Some(r#match),
        ignore_case: true,
        invert: false,
    })
}

/// Who is asked becomes a provider beside the route. If nobody is there, nobody passes.
fn authorizer(pass: &mut Pass<'_>, auth: &ExternalAuth, place: &str) -> Result<To, String> {
    let by_http = match auth.protocol.as_str() {
        "HTTP" => true,
        "GRPC" => false,
        other => return Err(unknown("protocol", other, &["HTTP", "GRPC"])),
    };
    let Some(service) = pass.resolved(&auth.backend_ref) else {
        return Ok(To::Unknown(format!("{place}: nobody is there to be asked")));
    };
    let http = auth.http.clone().unwrap_or_default();
    let grpc = auth.grpc.clone().unwrap_or_default();
    // None named: all that an answer has, as the Gateway API says.
    let all = || vec!["*".to_owned()];
    let given = Some(http.allowed_response_headers).filter(|given| !given.is_empty() || !by_http);
    let authorizer = wire::Authorizer {
        service: Some(service),
        http: by_http,
        path_prefix: http.path.unwrap_or_default(),
        send_headers: if by_http {
            http.allowed_headers
        } else {
            grpc.allowed_headers
        },
        to_upstream: given.unwrap_or_else(all),
        body_bytes: auth
            .forward_body
            .as_ref()
            .and_then(|it| it.max_size)
            .unwrap_or(0),
        body_partial: auth.forward_body.is_some(),
        ..wire::Authorizer::default()
    };
    Ok(To::Authorizer(pass.provider(authorizer)))
}
