package rpc

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// serve runs one request and answers it if it is a call.
func (s *Server) serve(ctx context.Context, r *request) {
	ctx = reqctx.With(ctx, reqctx.FromMap(r.context))
	ctx = reqctx.WithField(ctx, "method", r.method)
	if r.msgID == "" || r.replyTo == "" {
		_, err := s.run(ctx, r)
		logOutcome(ctx, err, true)
		return
	}
	runCtx, cancel := ctx, context.CancelFunc(func() {})
	if r.expiration > 0 {
		runCtx, cancel = context.WithTimeout(ctx, r.expiration)
	}
	stopBeats := s.startBeats(ctx, r)
	result, err := s.run(runCtx, r)
	cancel()
	stopBeats() // no sign of life may follow the final reply
	logOutcome(ctx, err, false)
	s.answer(ctx, r, result, err)
}

// run finds the handler and calls it; a panic becomes an error.
func (s *Server) run(ctx context.Context, r *request) (result any, err error) {
	if r.refusal != nil {
		return nil, r.refusal
	}
	handler, refusal := lookup(s.endpoints, r.namespace, r.version, r.method)
	if refusal != nil {
		reason := "unsupported_version"
		if refusal.Class == "NoSuchMethod" {
			reason = "no_such_method"
		}
		refusedMessages.WithLabelValues(reason).Inc()
		return nil, refusal
	}
	args, err := r.arguments()
	if err != nil {
		malformedMessages.WithLabelValues("args").Inc()
		return nil, builtin("TypeError", err.Error())
	}
	start, outcome := time.Now(), "panic"
	defer func() {
		if p := recover(); p != nil {
			reqctx.Log(ctx).WithField("panic", p).WithField("stack", string(debug.Stack())).Error("handler panicked")
			result, err = nil, &panicError{method: r.method}
		}
		requestSeconds.WithLabelValues(r.method, outcome).Observe(time.Since(start).Seconds())
	}()
	reqctx.Log(ctx).Debug("request started")
	result, err = handler(ctx, args)
	switch {
	case err == nil:
		outcome = "ok"
	case isFailure(err):
		outcome = "failure"
	default:
		outcome = "error"
	}
	return result, err
}

// panicError is what callers hear of a handler that panicked: the value and the
// stack stay in the log.
type panicError struct{ method string }

func (e *panicError) Error() string { return "internal error in method " + e.method }

// logOutcome is the one place where the error of a handler is logged. A failure
// that its caller hears of is the caller's matter.
func logOutcome(ctx context.Context, err error, cast bool) {
	var panicked *panicError
	switch {
	case err == nil:
		reqctx.Log(ctx).Debug("request done")
	case errors.As(err, &panicked): // logged with its stack
	case isFailure(err) && !cast:
		reqctx.Log(ctx).WithError(err).Info("request answered with a failure")
	case isFailure(err):
		reqctx.Log(ctx).WithError(err).Warning("request without answer failed")
	default:
		reqctx.Log(ctx).WithError(err).Error("request failed")
	}
}

// answer sends the final reply of a call.
func (s *Server) answer(ctx context.Context, r *request, result any, err error) {
	out := &reply{ending: true, msgID: r.msgID, uniqueID: newID()}
	if err != nil {
		out.failure = failureOf(err)
	} else if out.result, err = marshal(result); err != nil {
		reqctx.Log(ctx).WithError(err).Error("result cannot be encoded")
		out.result, out.failure = nil, failureOf(fmt.Errorf("result of %s: %w", r.method, err))
	}
	body, err := out.encode()
	if err != nil { // kwargs of a failure that are not JSON
		reqctx.Log(ctx).WithError(err).Error("failure cannot be encoded")
		out.failure = &Failure{Class: out.failure.Class, Module: out.failure.Module, Message: out.failure.Message, Args: []any{out.failure.Message}}
		if body, err = out.encode(); err != nil {
			lostReplies.Inc()
			return
		}
	}
	s.sendReply(ctx, r, body)
}
