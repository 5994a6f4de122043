package glance

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/compute-agent/compute-agent/internal/openstack"
)

// Image is the record of an image.
type Image struct {
	ID              string
	Name            string
	Status          string // active, queued, saving, …
	Owner           string
	Visibility      string // public, private, shared, community
	Size            *int64 // bytes; nil before there is data
	Checksum        string // MD5, hexadecimal; may be empty
	OSHashAlgo      string // usually sha512; empty in old images
	OSHashValue     string
	OSHidden        bool
	Protected       bool
	DiskFormat      string
	ContainerFormat string
	MinRAM          int // MB
	MinDisk         int // GB
	VirtualSize     *int64
	CreatedAt       string // 2026-11-20T17:48:45Z
	UpdatedAt       string
	Tags            []string
	// Properties are the fields that the schema does not name, such as hw_architecture.
	Properties map[string]any
}

// record is the wire form of what the schema names (glance/api/v2/images.py:get_base_properties).
type record struct {
	ID              string   `json:"id"`
	Name            string   `json:"name"`
	Status          string   `json:"status"`
	Owner           string   `json:"owner"`
	Visibility      string   `json:"visibility"`
	Size            *int64   `json:"size"`
	Checksum        string   `json:"checksum"`
	OSHashAlgo      string   `json:"os_hash_algo"`
	OSHashValue     string   `json:"os_hash_value"`
	OSHidden        bool     `json:"os_hidden"`
	Protected       bool     `json:"protected"`
	DiskFormat      string   `json:"disk_format"`
	ContainerFormat string   `json:"container_format"`
	MinRAM          int      `json:"min_ram"`
	MinDisk         int      `json:"min_disk"`
	VirtualSize     *int64   `json:"virtual_size"`
	CreatedAt       string   `json:"created_at"`
	UpdatedAt       string   `json:"updated_at"`
	Tags            []string `json:"tags"`
}

// baseFields are the names of record and of the other fields that are not properties.
var baseFields = []string{
	"id", "name", "status", "owner", "visibility", "size", "checksum", "os_hash_algo", "os_hash_value", "os_hidden",
	"protected", "disk_format", "container_format", "min_ram", "min_disk", "virtual_size", "created_at", "updated_at", "tags",
	"self", "file", "schema", "locations", "direct_url",
}

// UnmarshalJSON implements json.Unmarshaler: known fields, and all others as properties.
func (i *Image) UnmarshalJSON(data []byte) error {
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return fmt.Errorf("read image: %w", err)
	}
	var all map[string]any
	if err := json.Unmarshal(data, &all); err != nil {
		return fmt.Errorf("read image: %w", err)
	}
	for _, name := range baseFields {
		delete(all, name)
	}
	*i = Image{
		ID: r.ID, Name: r.Name, Status: r.Status, Owner: r.Owner, Visibility: r.Visibility, Size: r.Size,
		Checksum: r.Checksum, OSHashAlgo: r.OSHashAlgo, OSHashValue: r.OSHashValue, OSHidden: r.OSHidden,
		Protected: r.Protected, DiskFormat: r.DiskFormat, ContainerFormat: r.ContainerFormat, MinRAM: r.MinRAM,
		MinDisk: r.MinDisk, VirtualSize: r.VirtualSize, CreatedAt: r.CreatedAt, UpdatedAt: r.UpdatedAt,
		Tags: r.Tags, Properties: all,
	}
	return nil
}

// Show returns the record of an image, or ErrNotFound.
func (c *Client) Show(ctx context.Context, id string) (Image, error) {
	var image Image
	err := c.attempt(ctx, func(endpoint string) error {
		return c.options.Service.Do(ctx, openstack.Request{
			Method: http.MethodGet, Path: imagePath(id, ""), Into: &image, User: true, Endpoint: endpoint,
		})
	})
	if err != nil {
		return Image{}, fmt.Errorf("show image %s: %w", id, err)
	}
	return image, nil
}

// Delete removes an image; one that is gone is ErrNotFound.
func (c *Client) Delete(ctx context.Context, id string) error {
	err := c.attempt(ctx, func(endpoint string) error {
		return c.options.Service.Do(ctx, openstack.Request{
			Method: http.MethodDelete, Path: imagePath(id, ""), User: true, Endpoint: endpoint,
		})
	})
	if err != nil {
		return fmt.Errorf("delete image %s: %w", id, err)
	}
	return nil
}
