package glanceimage

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/openstack"
	"github.com/compute-agent/compute-agent/internal/openstack/barbican"
	"github.com/compute-agent/compute-agent/internal/openstack/glance"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/signature"
)

// KeyManager has certificates. The errors to test for are those of the package barbican.
type KeyManager interface {
	Certificate(ctx context.Context, id string) (*x509.Certificate, error)
}

// Trust is what an image has to prove before a server is made of it: that it is signed and, if certificates
// are named, that a chain leads from its signer's to these.
type Trust struct {
	Certificates []string // ids in the key manager
	Unnamed      bool     // a chain is wanted and no certificate named: nothing can prove that
}

// Prover finds out what images claim.
type Prover struct {
	Glance *glance.Client
	Keys   KeyManager
}

// Proof compares what an image claims with what it is.
type Proof struct {
	image *half
	other *half // of the metadata half of a split image; nil: the image is whole
}

// half is the claim of one file in Glance.
type half struct {
	digest   string // Glance's name of the hash
	verifier *signature.Verifier
}

// Expect looks at what an image has to prove as far as that goes without its bytes, which are to be fetched then: properties,
// certificates and their chains. It makes the request ask for the hashes that were signed. Both halves of a split image
// are to be signed.
func (p Prover) Expect(ctx context.Context, r *imagesync.Request, trust *Trust) (Proof, error) {
	var proof Proof
	var err error
	if proof.image, err = p.claimOf(ctx, r.ID, trust); err != nil {
		return proof, err
	}
	r.Digest = proof.image.digest
	if part := r.MetadataImage; part != nil {
		if proof.other, err = p.claimOf(ctx, part.ID, trust); err != nil {
			return proof, err
		}
		part.Digest = proof.other.digest
	}
	return proof, nil
}

// claimOf reads what Glance knows of an image now: a message has what it was when the user asked
// (nova/image/glance.py:_get_verifier).
func (p Prover) claimOf(ctx context.Context, id string, trust *Trust) (*half, error) {
	image, err := p.Glance.Show(ctx, id)
	if err != nil {
		return nil, err
	}
	claim, err := signature.Parse(func(name string) string {
		value, _ := image.Properties[name].(string)
		return value
	})
	if err != nil {
		return nil, signatureError(err)
	}
	certificate, err := p.certificate(ctx, claim.Certificate)
	if err != nil {
		return nil, signatureError(err)
	}
	verifier, err := claim.Verifier(certificate)
	if err != nil {
		return nil, signatureError(err)
	}
	if err := p.validate(ctx, claim.Certificate, certificate, trust); err != nil {
		return nil, err
	}
	return &half{digest: claim.Digest(), verifier: verifier}, nil
}

// certificate fetches one as the user, in the words of cursive where there is none
// (cursive/signature_utils.py:get_certificate).
func (p Prover) certificate(ctx context.Context, id string) (*x509.Certificate, error) {
	certificate, err := p.Keys.Certificate(ctx, id)
	switch {
	case errors.Is(err, barbican.ErrNotFound):
		return nil, &signature.Error{Reason: "Certificate not found with ID: " + id}
	case errors.Is(err, barbican.ErrRefused):
		reason := "Unable to retrieve certificate with ID: " + id
		if status := openstack.Status(err); status != 0 {
			reason += fmt.Sprintf(" (the key manager answers %d %s)", status, http.StatusText(status))
		}
		reqctx.Log(ctx).WithError(err).WithField("certificate", id).Warning("certificate not retrieved")
		return nil, &signature.Error{Reason: reason}
	case errors.Is(err, barbican.ErrFormat):
		return nil, &signature.Error{Reason: fmt.Sprintf("Invalid certificate with ID: %s (%v)", id, err)}
	case err != nil: // another host may reach the key manager
		return nil, fmt.Errorf("retrieve certificate %s: %w", id, err)
	}
	return certificate, nil
}

// validate wants a chain to the certificates that are trusted, of which those that cannot be had are left out
// (cursive/certificate_utils.py:verify_certificate).
func (p Prover) validate(ctx context.Context, id string, certificate *x509.Certificate, trust *Trust) error {
	if trust.Unnamed {
		return exception.CertificateValidationFailed(id, "Image signature certificate validation enabled, but no trusted certificate IDs were provided. "+
			"Unable to validate the certificate used to verify the image signature.")
	}
	if len(trust.Certificates) == 0 {
		return nil
	}
	var trusted []signature.Trusted
	for _, trustedID := range trust.Certificates {
		c, err := p.certificate(ctx, trustedID)
		if bad, ok := errors.AsType[*signature.Error](err); ok {
			reqctx.Log(ctx).WithError(bad).WithField("certificate", trustedID).Warning("trusted certificate left out")
			continue
		}
		if err != nil {
			return err
		}
		trusted = append(trusted, signature.Trusted{ID: trustedID, Certificate: c})
	}
	if err := signature.Validate(certificate, trusted, time.Now()); err != nil {
		return exception.CertificateValidationFailed(id, err.Error()).Because(err)
	}
	return nil
}

// Check compares the signatures with the hashes of the image that is in the store.
func (p *Proof) Check(image *imagesync.Image) error {
	if (p.other == nil) != (image.MetadataHashes == nil) {
		return exception.SignatureVerification("the host has the image in other pieces than those that are signed")
	}
	if err := p.image.check(image.Hashes); err != nil || p.other == nil {
		return err
	}
	return p.other.check(image.MetadataHashes)
}

func (h *half) check(hashes map[string]string) error {
	digest, err := hex.DecodeString(hashes[h.digest])
	if err != nil {
		return fmt.Errorf("read %s of the stored image: %w", h.digest, err)
	}
	return signatureError(h.verifier.Verify(digest))
}

// signatureError gives what a signature does not prove its class. Nova sends a build whose bytes have another signature to the
// next host, which finds the same; here it ends like one whose properties are wrong.
func signatureError(err error) error {
	if bad, ok := errors.AsType[*signature.Error](err); ok {
		return exception.SignatureVerification(bad.Reason).Because(err)
	}
	return err
}
