// The pod network of the test cluster, one a node.
//
//  1. watch the cluster's nodes
//  2. own node: write the CNI configuration for the pod ranges that Kubernetes gave it (IPv4 and IPv6)
//  3. other nodes: keep a route to their pod ranges
//
// Addresses are never translated, and no route leads out of the cluster. Another program (a mesh) may add a plugin of its own to
// the configuration: it is written again only when the ranges are others.
package main

import (
	"context"
	"encoding/json"
	"log"
	"net"
	"os"
	"reflect"

	"github.com/vishvananda/netlink"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

const file = "/etc/cni/net.d/10-podnet.conflist"

type subnet struct {
	Subnet string `json:"subnet"`
}

type destination struct {
	Destination string `json:"dst"`
}

type addresses struct {
	Type    string        `json:"type"`
	DataDir string        `json:"dataDir"`
	Ranges  [][]subnet    `json:"ranges"`
	Routes  []destination `json:"routes"`
}

type plugin struct {
	Type         string          `json:"type"`
	MTU          int             `json:"mtu,omitempty"`
	Addresses    *addresses      `json:"ipam,omitempty"`
	Capabilities map[string]bool `json:"capabilities,omitempty"`
}

type network struct {
	Version string   `json:"cniVersion"`
	Name    string   `json:"name"`
	Plugins []plugin `json:"plugins"`
}

func main() {
	config, err := rest.InClusterConfig()
	if err != nil {
		log.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		log.Fatal(err)
	}
	own := os.Getenv("NODE_NAME")
	see := func(object any) {
		node := object.(*core.Node)
		handle := connect
		if node.Name == own {
			handle = configure
		}
		if err := handle(node); err != nil {
			log.Printf("node %s: %v", node.Name, err)
		}
	}
	_, watch := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: cache.NewListWatchFromClient(client.CoreV1().RESTClient(), "nodes", "", fields.Everything()),
		ObjectType:    &core.Node{},
		Handler:       cache.ResourceEventHandlerFuncs{AddFunc: see, UpdateFunc: func(_, node any) { see(node) }},
	})
	watch.RunWithContext(context.Background())
}

// configure writes this node's CNI configuration.
func configure(node *core.Node) error {
	if len(node.Spec.PodCIDRs) == 0 {
		return nil
	}
	wanted := addresses{Type: "host-local", DataDir: "/run/podnet"}
	for _, cidr := range node.Spec.PodCIDRs {
		everything := "0.0.0.0/0"
		if ip, _, _ := net.ParseCIDR(cidr); ip.To4() == nil {
			everything = "::/0"
		}
		wanted.Ranges = append(wanted.Ranges, []subnet{{cidr}})
		wanted.Routes = append(wanted.Routes, destination{everything})
	}
	var present network
	if text, err := os.ReadFile(file); err == nil && json.Unmarshal(text, &present) == nil && len(present.Plugins) > 0 &&
		reflect.DeepEqual(present.Plugins[0].Addresses, &wanted) {
		return nil
	}
	text, err := json.MarshalIndent(network{"1.0.0", "podnet", []plugin{
		{Type: "ptp", MTU: 1500, Addresses: &wanted},
		{Type: "portmap", Capabilities: map[string]bool{"portMappings": true}},
	}}, "", "  ")
	if err != nil {
		return err
	}
	log.Printf("ranges %v", node.Spec.PodCIDRs)
	if err := os.WriteFile(file+".new", text, 0o644); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// connect keeps the routes to another node's pods.
func connect(node *core.Node) error {
	for _, cidr := range node.Spec.PodCIDRs {
		_, pods, err := net.ParseCIDR(cidr)
		if err != nil {
			return err
		}
		for _, address := range node.Status.Addresses {
			via := net.ParseIP(address.Address)
			if address.Type != core.NodeInternalIP || (via.To4() == nil) != (pods.IP.To4() == nil) {
				continue
			}
			if err := netlink.RouteReplace(&netlink.Route{Dst: pods, Gw: via}); err != nil {
				return err
			}
		}
	}
	return nil
}
