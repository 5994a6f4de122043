package cloud

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"path"
)

// named finds the id of the object called name in the list that path answers with under key.
func (c *Client) named(ctx context.Context, service, path, key, name string) (string, error) {
	var answer map[string]any
	if err := c.Do(ctx, http.MethodGet, service, path, nil, &answer); err != nil {
		return "", err
	}
	list, ok := answer[key].([]any)
	if !ok {
		return "", fmt.Errorf("find %s %s: no list in the answer", service, name)
	}
	for _, entry := range list {
		if object, ok := entry.(map[string]any); ok && object["name"] == name {
			if id, ok := object["id"].(string); ok {
				return id, nil
			}
		}
	}
	return "", nil
}

// ImageID is the id of the image with the name, "" when there is none.
func (c *Client) ImageID(ctx context.Context, name string) (string, error) {
	return c.named(ctx, Image, "/v2/images?name="+url.QueryEscape(name), "images", name)
}

// NetworkID is the id of the network with the name, "" when there is none.
func (c *Client) NetworkID(ctx context.Context, name string) (string, error) {
	return c.named(ctx, Network, "/v2.0/networks?name="+url.QueryEscape(name), "networks", name)
}

// FlavorID is the id of the flavor with the name, "" when there is none.
func (c *Client) FlavorID(ctx context.Context, name string) (string, error) {
	return c.named(ctx, Compute, "/flavors", "flavors", name)
}

// UploadImage creates a public image and sends its bytes. properties may set anything else of the image.
func (c *Client) UploadImage(ctx context.Context, name, diskFormat string, properties map[string]any, data io.Reader) (string, error) {
	body := map[string]any{"name": name, "disk_format": diskFormat, "container_format": "bare", "visibility": "public"}
	maps.Copy(body, properties)
	var image struct{ ID string }
	if err := c.Do(ctx, http.MethodPost, Image, "/v2/images", body, &image); err != nil {
		return "", err
	}
	return image.ID, c.Do(ctx, http.MethodPut, Image, "/v2/images/"+image.ID+"/file", data, nil)
}

// imagePatch is a body of a type of Glance's own.
type imagePatch []map[string]any

// SetImage sets properties of an image.
func (c *Client) SetImage(ctx context.Context, id string, properties map[string]any) error {
	var patch imagePatch
	for name, value := range properties {
		patch = append(patch, map[string]any{"op": "add", "path": "/" + name, "value": value})
	}
	return c.Do(ctx, http.MethodPatch, Image, "/v2/images/"+id, patch, nil)
}

// StoreCertificate puts a certificate in PEM into the key manager and returns its id.
func (c *Client) StoreCertificate(ctx context.Context, name string, pem []byte) (string, error) {
	var answer struct {
		Ref string `json:"secret_ref"`
	}
	err := c.Do(ctx, http.MethodPost, KeyManager, "/v1/secrets", map[string]any{
		"name": name, "secret_type": "certificate", "payload_content_type": "application/octet-stream",
		"payload_content_encoding": "base64", "payload": base64.StdEncoding.EncodeToString(pem),
	}, &answer)
	return path.Base(answer.Ref), err
}

// DeleteSecret removes what the key manager has under an id.
func (c *Client) DeleteSecret(ctx context.Context, id string) error {
	return c.Do(ctx, http.MethodDelete, KeyManager, "/v1/secrets/"+id, nil, nil)
}

// DeleteImage removes an image.
func (c *Client) DeleteImage(ctx context.Context, id string) error {
	return c.Do(ctx, http.MethodDelete, Image, "/v2/images/"+id, nil, nil)
}

// NewFlavor says what flavor to create; ram and swap in MiB, disks in GiB.
type NewFlavor struct {
	ID    string `json:"id,omitempty"`
	Name  string `json:"name"`
	RAM   int    `json:"ram"`
	VCPUs int    `json:"vcpus"`
	Disk  int    `json:"disk"`

	Ephemeral int `json:"OS-FLV-EXT-DATA:ephemeral,omitempty"`
	Swap      int `json:"swap,omitempty"`
}

// CreateFlavor creates a public flavor and sets its extra specs.
func (c *Client) CreateFlavor(ctx context.Context, flavor NewFlavor, specs map[string]string) (string, error) {
	var answer struct{ Flavor struct{ ID string } }
	if err := c.Do(ctx, http.MethodPost, Compute, "/flavors", map[string]any{"flavor": flavor}, &answer); err != nil {
		return "", err
	}
	if len(specs) == 0 {
		return answer.Flavor.ID, nil
	}
	path := "/flavors/" + answer.Flavor.ID + "/os-extra_specs"
	return answer.Flavor.ID, c.Do(ctx, http.MethodPost, Compute, path, map[string]any{"extra_specs": specs}, nil)
}

// DeleteFlavor removes a flavor.
func (c *Client) DeleteFlavor(ctx context.Context, id string) error {
	return c.Do(ctx, http.MethodDelete, Compute, "/flavors/"+id, nil, nil)
}

// Port is a neutron port.
type Port struct {
	ID         string
	Status     string
	NetworkID  string `json:"network_id"`
	DeviceID   string `json:"device_id"`
	MACAddress string `json:"mac_address"`
	HostID     string `json:"binding:host_id"`
	VIFType    string `json:"binding:vif_type"`
}

// Ports lists the ports that match the query, such as "device_id=…".
func (c *Client) Ports(ctx context.Context, query string) ([]Port, error) {
	var answer struct{ Ports []Port }
	err := c.Do(ctx, http.MethodGet, Network, "/v2.0/ports?"+query, nil, &answer)
	return answer.Ports, err
}

// Inventory is one resource class of a provider.
type Inventory struct {
	Total, Reserved int
	AllocationRatio float64 `json:"allocation_ratio"`
}

// Provider finds the resource provider of a compute node by name and reads its inventories by resource class.
func (c *Client) Provider(ctx context.Context, name string) (id string, inventories map[string]Inventory, err error) {
	var list struct {
		Providers []struct{ UUID string } `json:"resource_providers"`
	}
	if err = c.Do(ctx, http.MethodGet, Placement, "/resource_providers?name="+url.QueryEscape(name), nil, &list); err != nil {
		return "", nil, err
	}
	if len(list.Providers) == 0 {
		return "", nil, nil
	}
	id = list.Providers[0].UUID
	var answer struct{ Inventories map[string]Inventory }
	err = c.Do(ctx, http.MethodGet, Placement, "/resource_providers/"+id+"/inventories", nil, &answer)
	return id, answer.Inventories, err
}

// Allocations lists the consumers that hold resources of a provider.
func (c *Client) Allocations(ctx context.Context, providerID string) (map[string]any, error) {
	var answer struct{ Allocations map[string]any }
	err := c.Do(ctx, http.MethodGet, Placement, "/resource_providers/"+providerID+"/allocations", nil, &answer)
	return answer.Allocations, err
}
