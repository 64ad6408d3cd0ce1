//! What may be asked for keys.

use http::Uri;
use waypoint::authenticate::{is_allowed, may_be_asked};

#[test]
fn neither_the_proxy_itself_nor_its_node_nor_metadata_may_be_asked() {
    for forbidden in [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "127.255.0.1",
        "169.254.169.254",
        "169.254.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "fe80::1",
        "febf::1",
        "fec0::1",
        "ff02::1",
        "fd00:ec2::254",
        "fd20:ce::254",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "2001::1",
    ] {
        assert!(!is_allowed(forbidden.parse().unwrap()), "{forbidden}");
    }
    for allowed in [
        "10.96.0.1",
        "192.168.1.1",
        "172.16.0.1",
        "100.64.0.1",
        "8.8.8.8",
        "fd00::1",
        "2606:4700::1",
        "64:ff9b::808:808",
        "2002:808:808::1",
        "::ffff:10.0.0.1",
    ] {
        assert!(is_allowed(allowed.parse().unwrap()), "{allowed}");
    }
}

#[test]
fn a_uri_names_a_host_over_http() {
    let of = |uri: &str| may_be_asked(&uri.parse::<Uri>().unwrap());
    let place = of("https://Issuer.Example./keys?x=1").unwrap();
    assert_eq!(
        (place.secure, &*place.host, place.port),
        (true, "issuer.example", 443)
    );
    let place = of("http://keys.shop.svc.cluster.local:8080/").unwrap();
    assert_eq!(
        (place.secure, &*place.host, place.port),
        (false, "keys.shop.svc.cluster.local", 8080)
    );
    let place = of("https://[fd00::1]/").unwrap();
    assert_eq!((&*place.host, place.port), ("fd00::1", 443));
    for forbidden in [
        "/keys",
        "ftp://issuer.example/",
        "file:///etc/passwd",
        "gopher://issuer.example/",
        "http://localhost/",
        "http://LOCALHOST:80/",
        "http://a.localhost/",
        "http://localhost./",
        "http://127.0.0.1:15000/config_dump",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.0.0.0x1/",
        "http://0177.0.0.1/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://169.254.169.254/latest/meta-data",
        "http://user@issuer.example/",
        "http://issuer.example@169.254.169.254/",
    ] {
        let Ok(uri) = forbidden.parse::<Uri>() else {
            continue;
        };
        assert!(may_be_asked(&uri).is_err(), "{forbidden}");
    }
}
