//! What is written into the configuration directory, one object (or two) a chapter.

pub(super) const CANARY: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: canary, namespace: tea }
spec:
  parentRefs: [{ group: '', kind: Service, name: menu }]
  rules:
  - backendRefs:
    - { name: menu-v1, port: 80, weight: 90 }
    - { name: menu-v2, port: 80, weight: 10 }
";

pub(super) const RETRY: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: again, namespace: tea }
spec:
  parentRefs: [{ group: '', kind: Service, name: menu }]
  rules:
  - retry: { codes: [503], attempts: 2, backoff: 5ms }
    backendRefs: [{ name: menu, port: 80 }]
";

pub(super) const FAULT: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: trouble, namespace: tea }
spec:
  hosts: [menu]
  http:
  - fault:
      delay: { fixedDelay: 50ms, percentage: { value: 50 } }
      abort: { httpStatus: 418, percentage: { value: 50 } }
    route: [{ destination: { host: menu, port: { number: 80 } } }]
";

pub(super) const MIRROR: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: aside, namespace: tea }
spec:
  parentRefs: [{ group: '', kind: Service, name: menu }]
  rules:
  - filters:
    - { type: RequestMirror, requestMirror: { backendRef: { name: menu-v2, port: 80 } } }
    backendRefs: [{ name: menu-v1, port: 80 }]
";

/// Who signs tokens.
pub(super) const ISSUER: &str = "https://guests.example";

/// `KEYS` stands for the issuer's public key.
pub(super) const TOKENS: &str = "\
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: { name: tokens, namespace: tea }
spec:
  targetRefs: [{ group: '', kind: Service, name: menu }]
  jwtRules: [{ issuer: 'https://guests.example', jwks: 'KEYS' }]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: guests-only, namespace: tea }
spec:
  targetRefs: [{ group: '', kind: Service, name: menu }]
  rules:
  - from: [{ source: { requestPrincipals: ['https://guests.example/*'] } }]
";

pub(super) const LIMIT: &str = "\
apiVersion: ambit.io/v1alpha1
kind: RateLimitPolicy
metadata: { name: few, namespace: tea }
spec:
  targetRefs: [{ kind: Service, name: menu }]
  limits:
  - { name: each-client, requests: 5, window: 1h, keys: [{ by: Identity }] }
";

pub(super) const DENY: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: kiosk-may-only-look, namespace: tea }
spec:
  targetRefs: [{ group: '', kind: Service, name: menu }]
  action: DENY
  rules:
  - from: [{ source: { principals: [cluster.local/ns/shop/sa/kiosk] } }]
    to: [{ operation: { notMethods: [GET] } }]
";
