// Package conformance runs the Gateway API's own suite as it is; `run` gives it a mesh, its pods and its words.
package conformance

import (
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
)

func TestConformance(t *testing.T) {
	conformance.RunConformance(t)
}
