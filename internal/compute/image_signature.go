package compute

import (
	"context"

	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/internal/compute/glanceimage"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// trust is what the host wants of an image, and the user who named certificates for a server; nil: nothing
// (nova/image/glance.py:_get_verifier).
func (m *Manager) trust(named *object.TrustedCerts) *glanceimage.Trust {
	var ids []string
	if named != nil {
		ids = named.IDs
	}
	if len(ids) == 0 && m.opts.ValidateCertificate {
		ids = m.opts.TrustedCertificates
	}
	if len(ids) == 0 && !m.opts.VerifySignatures {
		return nil
	}
	return &glanceimage.Trust{Certificates: ids, Unnamed: len(ids) == 0 && m.opts.ValidateCertificate}
}

// syncProven brings an image into the local store. Signatures are compared with the hashes that the store
// computed when it unpacked these very bytes, in this import or an earlier one, whoever asked for that and whatever was to
// be proven then. So nothing that is in the store counts as proven, and nothing is fetched again.
func (m *Manager) syncProven(ctx context.Context, r imagesync.Request, trust *glanceimage.Trust) (imagesync.Image, error) {
	var proof glanceimage.Proof
	var err error
	if trust != nil {
		if proof, err = (glanceimage.Prover{Glance: m.Glance, Keys: m.Keys}).Expect(ctx, &r, trust); err != nil {
			return imagesync.Image{}, imageError(r.ID, err)
		}
	}
	image, err := m.Images.Sync(ctx, r)
	if err != nil {
		return image, imageError(r.ID, err)
	}
	if trust == nil {
		return image, nil
	}
	if err := proof.Check(&image); err != nil {
		return imagesync.Image{}, err
	}
	reqctx.Log(ctx).WithField("image_id", r.ID).WithField("trusted_certificates", len(trust.Certificates)).Info("image signature verification succeeded")
	return image, nil
}
