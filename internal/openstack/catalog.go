package openstack

import (
	"encoding/json"
	"net/url"
	"regexp"
	"strings"
)

// catalog is the service catalog of a token, in Keystone v3's form.
type catalog []catalogEntry

type catalogEntry struct {
	Type      string            `json:"type"`
	Name      string            `json:"name"`
	Endpoints []catalogEndpoint `json:"endpoints"`
}

type catalogEndpoint struct {
	Interface string `json:"interface"`
	Region    string `json:"region"`
	RegionID  string `json:"region_id"`
	URL       string `json:"url"`
	// The v2 form, in which Nova's API puts the catalog into request contexts.
	PublicURL   string `json:"publicURL"`
	InternalURL string `json:"internalURL"`
	AdminURL    string `json:"adminURL"`
}

// parseCatalog reads the catalog of a request context; nothing or something
// foreign is an empty catalog.
func parseCatalog(raw json.RawMessage) catalog {
	var c catalog
	if len(raw) == 0 || json.Unmarshal(raw, &c) != nil {
		return nil
	}
	return c
}

// defaultInterfaces is Nova's default of valid_interfaces.
var defaultInterfaces = []string{"internal", "public"}

// find returns the first endpoint by service type, then by interface, each in
// order of preference; "" when there is none
// (keystoneauth1/access/service_catalog.py:ServiceCatalog.get_endpoints_data).
func (c catalog) find(o *ServiceOptions) string {
	interfaces := o.Interfaces
	if len(interfaces) == 0 {
		interfaces = defaultInterfaces
	}
	for _, serviceType := range o.Types {
		for _, iface := range interfaces {
			for i := range c {
				if c[i].Type != serviceType || (o.Name != "" && c[i].Name != o.Name) {
					continue
				}
				if u := c[i].url(strings.TrimSuffix(iface, "URL"), o.Region); u != "" {
					return u
				}
			}
		}
	}
	return ""
}

func (e *catalogEntry) url(iface, region string) string {
	for _, p := range e.Endpoints {
		if region != "" && p.Region != region && p.RegionID != region {
			continue
		}
		switch {
		case p.Interface == iface && p.URL != "":
			return p.URL
		case iface == "public" && p.PublicURL != "":
			return p.PublicURL
		case iface == "internal" && p.InternalURL != "":
			return p.InternalURL
		case iface == "admin" && p.AdminURL != "":
			return p.AdminURL
		}
	}
	return ""
}

var versionSuffix = regexp.MustCompile(`/v\d+(\.\d+)?$`)

// withVersion ends an endpoint in the given version, replacing another one.
func withVersion(endpoint, version string) string {
	endpoint = strings.TrimRight(endpoint, "/")
	if version == "" || strings.HasSuffix(endpoint, "/"+version) {
		return endpoint
	}
	return versionSuffix.ReplaceAllString(endpoint, "") + "/" + version
}

// redactURL removes a password from an address that goes into a message.
func redactURL(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return "(unreadable address)"
	}
	return u.Redacted()
}
