package controlplane

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Release is a release of OpenStack as a suite of Debian carries it: what sets its control plane apart from the others.
type Release struct {
	Name string // as compute-agent's own option "release" has it

	// KeyManager: StartKeyManager knows its Barbican. That of the others was not looked at.
	KeyManager bool
	// InspectsDisks: Glance refuses disk images that could make a host open other files, or of another format than they claim.
	InspectsDisks bool
	// EvacuatesStopped: Nova has microversion 2.95, from which on an evacuated server is not started.
	EvacuatesStopped bool

	suite    string   // of Debian
	nets     []string // kinds of network that its neutron has an agent for; the first is the default
	packages []string // of the chroot, besides the common ones
	image    service  // Glance
	network  []service
	settings settings
}

// settings of a release are what the templates of the configuration ask for.
type settings struct {
	Cache           string            // Keystone's backend for memcached
	TransientQueues bool              // RabbitMQ has to be told to permit queues that are neither durable nor exclusive
	WSGI            map[string]string // lines that name an application for uwsgi
}

// DefaultRelease is what a control plane is made of unless another one is asked for.
const DefaultRelease = "zed"

// releases by name. From Debian 13 on Neutron's server is in parts, and Glance an application for uwsgi.
var releases = map[string]Release{
	DefaultRelease: {
		KeyManager: true,

		suite:    guestSuite,
		nets:     []string{LinuxBridge, OVS},
		packages: []string{"neutron-linuxbridge-agent", "python3-memcache", KeyManagerPackage},
		image:    service{"glance-api", "glance", []string{"HOME=/var/lib/glance"}, []string{"/usr/bin/glance-api"}},
		network:  []service{neutronService("neutron-server", "neutron-server", mlConf)},
		settings: settings{Cache: "oslo_cache.memcache_pool", WSGI: scripts},
	},
	"epoxy": {
		InspectsDisks: true, EvacuatesStopped: true,

		suite:    "trixie",
		nets:     []string{OVS},
		packages: neutronParts,
		image:    uwsgiService("glance-api", "glance"),
		network:  neutronServers,
		settings: settings{Cache: "dogpile.cache.pymemcache", TransientQueues: true, WSGI: scripts},
	},
	"hibiscus": { // as long as sid carries it
		InspectsDisks: true, EvacuatesStopped: true,

		suite:    "sid",
		nets:     []string{OVS},
		packages: neutronParts,
		image:    uwsgiService("glance-api", "glance"),
		network:  neutronServers,
		settings: settings{Cache: "dogpile.cache.pymemcache", TransientQueues: true, WSGI: modules},
	},
}

// Neutron's server in parts.
var (
	neutronParts   = []string{"neutron-api", "neutron-rpc-server", "neutron-periodic-workers", "python3-memcache", "python3-pymemcache"}
	neutronServers = []service{
		uwsgiService("neutron-server", "neutron", "--pyargv", neutronConf+" "+mlConf),
		neutronService("neutron-rpc-server", "neutron-rpc-server", mlConf),
		neutronService("neutron-periodic-workers", "neutron-periodic-workers", mlConf),
	}
)

// Where uwsgi finds the applications: in programs, or in Python's modules.
var (
	scripts = map[string]string{
		"Glance":    "wsgi-file = /usr/bin/glance-wsgi-api",
		"Keystone":  "wsgi-file = /usr/bin/keystone-wsgi-public",
		"Metadata":  "wsgi-file = /usr/bin/nova-metadata-wsgi",
		"Neutron":   "wsgi-file = /usr/bin/neutron-api",
		"Nova":      "wsgi-file = /usr/bin/nova-api-wsgi",
		"Placement": "wsgi-file = /usr/bin/placement-api",
	}
	modules = map[string]string{
		"Glance":    "module = glance.wsgi.api:application",
		"Keystone":  "module = keystone.wsgi.api:application",
		"Metadata":  "module = nova.wsgi.metadata:application",
		"Neutron":   "module = neutron.wsgi.api:application",
		"Nova":      "module = nova.wsgi.osapi_compute:application",
		"Placement": "module = placement.wsgi.api:application",
	}
)

// releaseNamed finds a release.
func releaseNamed(name string) (Release, error) {
	release, ok := releases[name]
	if !ok {
		return Release{}, fmt.Errorf("unknown release %q: %s are known", name, strings.Join(slices.Sorted(maps.Keys(releases)), ", "))
	}
	release.Name = name
	return release, nil
}
