//go:build functional

package functional

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
	"github.com/compute-agent/compute-agent/tests/functional/host"
)

// issued is a certificate with its key, stored in the key manager.
type issued struct {
	certificate *x509.Certificate
	key         crypto.Signer
	id          string
}

// issue makes a certificate and stores it as a user.
func issue(t *testing.T, user *cloud.Client, name string, key crypto.Signer, by *issued) *issued {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		BasicConstraintsValid: true, IsCA: by == nil, MaxPathLen: -1, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	if by == nil {
		by = &issued{template, key, ""}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.certificate, key.Public(), by.key)
	require.NoError(t, err)
	certificate, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	id, err := user.StoreCertificate(within(t, time.Minute), shared.Host+"-"+name, text)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), slower*time.Minute)
		defer cancel()
		require.NoError(t, user.DeleteSecret(ctx, id))
	})
	return &issued{certificate, key, id}
}

// signed are the properties of an image that is signed with RSA-PSS over SHA-256, or ECDSA over SHA-384.
func (c *issued) signed(t *testing.T, data []byte) map[string]any {
	t.Helper()
	properties := map[string]any{"img_signature_certificate_uuid": c.id}
	var signature []byte
	var err error
	switch key := c.key.(type) {
	case *rsa.PrivateKey:
		properties["img_signature_hash_method"], properties["img_signature_key_type"] = "SHA-256", "RSA-PSS"
		sum := sha256.Sum256(data)
		signature, err = rsa.SignPSS(rand.Reader, key, crypto.SHA256, sum[:], &rsa.PSSOptions{SaltLength: key.Size() - sha256.Size - 2})
	case *ecdsa.PrivateKey:
		properties["img_signature_hash_method"], properties["img_signature_key_type"] = "SHA-384", "ECC_SECP384R1"
		sum := sha512.Sum384(data)
		signature, err = ecdsa.SignASN1(rand.Reader, key, sum[:])
	}
	require.NoError(t, err)
	properties["img_signature"] = base64.StdEncoding.EncodeToString(signature)
	return properties
}

// withKeyManager starts the key manager, and gives the administrator's session a catalog with it.
func withKeyManager(t *testing.T) *cloud.Client {
	t.Helper()
	require.NoError(t, shared.Plane.StartKeyManager(within(t, 3*time.Minute)))
	require.NoError(t, shared.Admin.Authenticate(within(t, time.Minute))) // the tests' own session, whose token nova passes on
	return shared.Admin
}

// TestSignedImages boots what is signed, and refuses what is not, with certificates from a real key manager. Glance verifies the same
// signatures with Nova's own library as it takes the data.
func TestSignedImages(t *testing.T) {
	if !shared.Plane.Release.KeyManager {
		t.Skip("needs a key manager, which the harness knows of Zed alone")
	}
	admin := withKeyManager(t)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	ecKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	require.NoError(t, err)
	rootKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	require.NoError(t, err)
	root := issue(t, admin, "root", rootKey, nil)
	foreign := issue(t, admin, "foreign", rootKey, nil)
	byRSA, byEC := issue(t, admin, "by-rsa", rsaKey, root), issue(t, admin, "by-ec", ecKey, root)
	data, err := os.ReadFile(shared.Plane.BusyboxPath())
	require.NoError(t, err)
	image := uploadFrom(t, bytes.NewReader(data), "raw", byRSA.signed(t, data))

	// refused boots what is not to boot, and compares what its owner sees.
	refused := func(t *testing.T, before host.Snapshot, image string, trusted []string, reason string) {
		t.Helper()
		id := create(t, cloud.NewServer{Image: image, TrustedCerts: trusted})
		require.Contains(t, errored(t, id).Fault.Message, reason)
		nothingLeft(t, before)
	}
	before := snapshot(t)
	trusted := []string{root.id}
	t.Run("signer not trusted", func(t *testing.T) {
		refused(t, before, image, []string{foreign.id}, "Image signature certificate validation failed for certificate: "+byRSA.id)
	})
	t.Run("signed", func(t *testing.T) {
		server := boot(t, cloud.NewServer{Image: image, TrustedCerts: trusted})
		require.Equal(t, "ACTIVE", server.Status)
		remove(t, server.ID)
	})
	t.Run("signed with another key and hash", func(t *testing.T) {
		server := boot(t, cloud.NewServer{Image: uploadFrom(t, bytes.NewReader(data), "raw", byEC.signed(t, data)), TrustedCerts: trusted})
		remove(t, server.ID)
	})
	t.Run("signature of something else", func(t *testing.T) { // by the right key; the host has these bytes, and they are signed as another image's
		wrong := uploadFrom(t, bytes.NewReader(data), "raw", nil)
		require.NoError(t, admin.SetImage(within(t, time.Minute), wrong, byRSA.signed(t, []byte("something else"))))
		refused(t, before, wrong, trusted, "Signature verification for the image failed")
		remove(t, boot(t, cloud.NewServer{Image: wrong}).ID) // who names no certificate does not ask
	})
	t.Run("certificate of another project", func(t *testing.T) {
		demo, err := shared.Plane.Demo(within(t, time.Minute))
		require.NoError(t, err)
		private := issue(t, demo, "private", rsaKey, nil)
		theirs := uploadFrom(t, bytes.NewReader(data), "raw", nil)
		require.NoError(t, admin.SetImage(within(t, time.Minute), theirs, private.signed(t, data)))
		refused(t, before, theirs, trusted, "Unable to retrieve certificate with ID: "+private.id)
	})
	t.Run("host wants signatures", func(t *testing.T) {
		withOptions(t, shared, "[glance]\nverify_glance_signatures = true\nenable_certificate_validation = true\ndefault_trusted_certificate_ids = "+root.id+"\n")
		refused(t, before, shared.Busybox, nil, "Missing property: img_signature")
		server := boot(t, cloud.NewServer{Image: image})
		err := shared.Admin.Action(within(t, time.Minute), server.ID, "rebuild", map[string]any{"imageRef": shared.Busybox}, nil)
		require.NoError(t, err)
		require.Contains(t, errored(t, server.ID).Fault.Message, "Missing property: img_signature")
	})
	t.Run("trait", func(t *testing.T) {
		var answer struct{ Traits []string }
		provider, _, err := admin.Provider(within(t, time.Minute), shared.Host)
		require.NoError(t, err)
		require.NoError(t, admin.Do(within(t, time.Minute), http.MethodGet, cloud.Placement, "/resource_providers/"+provider+"/traits", nil, &answer))
		require.Contains(t, strings.Join(answer.Traits, " "), "COMPUTE_TRUSTED_CERTS")
	})
}
