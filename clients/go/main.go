// Predicts a task for one user, and shows what a refusal looks like.
//
//	go run . URL KEY TASK ITEM…
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"
)

// Problem is a refusal; Code is stable and meant for programs.
type Problem struct {
	Status    int    `json:"status"`
	Code      string `json:"code"`
	Detail    string `json:"detail"`
	Hint      string `json:"hint"`
	RequestID string `json:"request_id"`
	Retryable bool   `json:"retryable"`
}

func (p *Problem) Error() string {
	return fmt.Sprintf("%s: %s %s (request %s)", p.Code, p.Detail, p.Hint, p.RequestID)
}

// Prediction has the fields that all kinds share, and those of this task's kind.
type Prediction struct {
	Kind         string             `json:"kind"`
	UnknownItems int                `json:"unknown_items"`
	Cold         bool               `json:"cold"`
	Label        string             `json:"label"`
	Scores       map[string]float64 `json:"scores"`
	Items        []struct {
		ID    string  `json:"id"`
		Score float64 `json:"score"`
	} `json:"items"`
	Value float64 `json:"value"`
}

// Answer has one prediction for each user of a call.
type Answer struct {
	Task        string       `json:"task"`
	Version     int          `json:"version"`
	Digest      string       `json:"digest"`
	Predictions []Prediction `json:"predictions"`
}

// Client keeps connections open between calls; share one between goroutines.
type Client struct {
	URL, Key string
	HTTP     http.Client
}

// Predict asks a task about one history, oldest item first. The server drops the call at the
// deadline of the context.
func (c *Client) Predict(ctx context.Context, task string, history []string) (*Answer, error) {
	body, err := json.Marshal(map[string]any{"history": history})
	if err != nil {
		return nil, err
	}
	for {
		answer, wait, err := c.attempt(ctx, task, body)
		if wait == 0 {
			return answer, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// attempt makes one attempt; wait is the time before another one makes sense, or 0.
func (c *Client) attempt(ctx context.Context, task string, body []byte) (*Answer, time.Duration, error) {
	target := c.URL + "/tasks/" + url.PathEscape(task) + "/predict"
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	request.Header.Set("Authorization", "Bearer "+c.Key)
	request.Header.Set("Content-Type", "application/json")
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline).Milliseconds()
		if left < 1 {
			left = 1
		}
		request.Header.Set("X-Request-Timeout-Ms", strconv.FormatInt(left, 10))
	}
	response, err := c.HTTP.Do(request)
	if err != nil {
		return nil, 0, err
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusOK {
		var answer Answer
		return &answer, 0, json.NewDecoder(response.Body).Decode(&answer)
	}
	problem := &Problem{Status: response.StatusCode}
	if err := json.NewDecoder(response.Body).Decode(problem); err != nil {
		return nil, 0, fmt.Errorf("HTTP %d without a problem: %w", response.StatusCode, err)
	}
	var wait time.Duration
	if response.StatusCode == http.StatusTooManyRequests || response.StatusCode == http.StatusServiceUnavailable {
		seconds, err := strconv.Atoi(response.Header.Get("Retry-After"))
		if err != nil || seconds < 1 {
			seconds = 1
		}
		wait = time.Duration(seconds) * time.Second
	}
	return nil, wait, problem
}

func main() {
	client := &Client{URL: os.Args[1], Key: os.Args[2]}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	answer, err := client.Predict(ctx, os.Args[3], os.Args[4:])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(answer.Task, answer.Version, answer.Predictions[0].Kind)
	_, err = client.Predict(ctx, "nothing", os.Args[4:])
	var problem *Problem
	if errors.As(err, &problem) {
		fmt.Println(problem.Code, problem.Status)
	}
}
