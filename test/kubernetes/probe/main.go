// SPDX-License-Identifier: Apache-2.0

// probe sends numbered messages from a pod and reports which of them were not answered.
//
//	probe echo ADDRESS                        echoes TCP lines and UDP datagrams
//	probe udp ADDRESS [COUNT [INTERVAL]]      datagrams, one every INTERVAL (10ms); until SIGINT if COUNT is 0
//	probe tcp ADDRESS [COUNT [INTERVAL]]      the same as lines over one connection
//	probe connect ADDRESS [COUNT [INTERVAL]]  one connection for each message
//	probe get URL                             the answer to an HTTP request; fails unless its status is 200
//
// The report is one line of JSON. The exit code is 0 if everything was answered.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Report is the result of a run. Durations are in milliseconds.
type Report struct {
	Kind       string `json:"kind"`
	Address    string `json:"address"`
	Sent       int    `json:"sent"`
	Lost       int    `json:"lost"`
	Duplicated int    `json:"duplicated"`
	// Answers that came after the answer to a later message.
	Reordered int `json:"reordered"`
	// Errors of the socket: refused, reset, timed out.
	Errors     int     `json:"errors"`
	FirstError string  `json:"firstError,omitempty"`
	WorstMs    float64 `json:"worstMs"`
	// The first lost messages: number and time of sending, to compare with logs.
	LostAt []string `json:"lostAt,omitempty"`
}

const (
	answerTimeout  = 2 * time.Second
	connectTimeout = 5 * time.Second
	// A TCP connection that is silent for so long counts as ended.
	brokenAfter = 30 * time.Second
)

var stopped = make(chan os.Signal, 1)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: probe echo|udp|tcp|connect|get ADDRESS [COUNT [INTERVAL]]")
		os.Exit(2)
	}
	signal.Notify(stopped, syscall.SIGINT, syscall.SIGTERM)
	kind, address := os.Args[1], os.Args[2]
	count, interval := 10, 10*time.Millisecond
	if len(os.Args) > 3 {
		count, _ = strconv.Atoi(os.Args[3])
	}
	if len(os.Args) > 4 {
		interval, _ = time.ParseDuration(os.Args[4])
	}
	run := map[string]func(*Report, int, time.Duration){"udp": udp, "tcp": tcp, "connect": connect}[kind]
	switch kind {
	case "echo":
		echo(address)
	case "get":
		get(address)
		return
	}
	if run == nil {
		fmt.Fprintln(os.Stderr, "probe: no such kind:", kind)
		os.Exit(2)
	}
	report := &Report{Kind: kind, Address: address}
	run(report, count, interval)
	text, _ := json.Marshal(report)
	fmt.Println(string(text))
	if report.Lost > 0 || report.Errors > 0 {
		os.Exit(1)
	}
}

// sequence calls send for each number, at its time, until count (0: for ever), SIGINT, or send returns that it is over.
func sequence(count int, interval time.Duration, send func(i int) bool) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for i := 0; count == 0 || i < count; i++ {
		if !send(i) {
			return
		}
		select {
		case <-stopped:
			return
		case <-ticker.C:
		}
	}
}

func (r *Report) fail(err error) {
	r.Errors++
	if r.FirstError == "" {
		r.FirstError = fmt.Sprintf("%s: %v", time.Now().Format("15:04:05.000"), err)
	}
}

func (r *Report) answered(after time.Duration) {
	r.WorstMs = max(r.WorstMs, float64(after.Microseconds())/1000)
}

func (r *Report) lose(i int, sent time.Time) {
	r.Lost++
	if len(r.LostAt) < 10 {
		r.LostAt = append(r.LostAt, fmt.Sprintf("#%d sent %s", i, sent.Format("15:04:05.000")))
	}
}

func udp(r *Report, count int, interval time.Duration) {
	c, err := net.Dial("udp", r.Address)
	if err != nil {
		r.fail(err)
		return
	}
	var mu sync.Mutex
	var sent []time.Time
	var answers []int
	latest := -1
	go func() {
		buffer := make([]byte, 2048)
		for {
			n, err := c.Read(buffer)
			mu.Lock()
			if errors.Is(err, net.ErrClosed) {
				mu.Unlock()
				return
			} else if err != nil {
				r.fail(err)
			} else if i, err := strconv.Atoi(string(buffer[:n])); err == nil && i < len(sent) {
				if answers[i] > 0 {
					r.Duplicated++
				} else if i < latest {
					r.Reordered++
				}
				answers[i]++
				latest = max(latest, i)
				r.answered(time.Since(sent[i]))
			}
			mu.Unlock()
		}
	}()
	sequence(count, interval, func(i int) bool {
		mu.Lock()
		sent, answers = append(sent, time.Now()), append(answers, 0)
		mu.Unlock()
		if _, err := c.Write([]byte(strconv.Itoa(i))); err != nil {
			mu.Lock()
			r.fail(err)
			mu.Unlock()
		}
		return true
	})
	mu.Lock()
	defer mu.Unlock()
	for end := time.Now().Add(answerTimeout); time.Now().Before(end) && slices.Contains(answers, 0); {
		mu.Unlock()
		time.Sleep(10 * time.Millisecond)
		mu.Lock()
	}
	r.Sent = len(sent)
	for i, n := range answers {
		if n == 0 {
			r.lose(i, sent[i])
		}
	}
}

// roundTrip sends one line and waits for its echo.
func roundTrip(c net.Conn, reader *bufio.Reader, i int, deadline time.Duration) error {
	line := strconv.Itoa(i) + "\n"
	c.SetDeadline(time.Now().Add(deadline))
	if _, err := c.Write([]byte(line)); err != nil {
		return err
	}
	got, err := reader.ReadString('\n')
	if err == nil && got != line {
		err = fmt.Errorf("sent %q and got %q", line, got)
	}
	return err
}

func tcp(r *Report, count int, interval time.Duration) {
	c, err := net.DialTimeout("tcp", r.Address, connectTimeout)
	if err != nil {
		r.fail(err)
		return
	}
	defer c.Close()
	reader := bufio.NewReader(c)
	sequence(count, interval, func(i int) bool {
		begun := time.Now()
		r.Sent++
		if err := roundTrip(c, reader, i, brokenAfter); err != nil {
			r.fail(err)
			r.lose(i, begun)
			return false
		}
		r.answered(time.Since(begun))
		return true
	})
}

func connect(r *Report, count int, interval time.Duration) {
	sequence(count, interval, func(i int) bool {
		begun := time.Now()
		r.Sent++
		c, err := net.DialTimeout("tcp", r.Address, answerTimeout)
		if err == nil {
			err = roundTrip(c, bufio.NewReader(c), i, answerTimeout)
			c.Close()
		}
		if err != nil {
			r.fail(err)
			r.lose(i, begun)
		} else {
			r.answered(time.Since(begun))
		}
		return true
	})
}

func get(url string) {
	client := http.Client{Timeout: answerTimeout}
	answer, err := client.Get(url)
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
	io.Copy(os.Stdout, answer.Body)
	if answer.StatusCode != http.StatusOK {
		os.Exit(1)
	}
}

// echo sends back what it gets, except that it answers "who" with the host's name and "from" with the sender's address.
func echo(address string) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		panic(err)
	}
	go func() {
		for {
			if c, err := listener.Accept(); err == nil {
				go echoLines(c)
			}
		}
	}()
	packets, err := net.ListenPacket("udp", address)
	if err != nil {
		panic(err)
	}
	buffer := make([]byte, 65536)
	for {
		if n, from, err := packets.ReadFrom(buffer); err == nil {
			packets.WriteTo([]byte(answer(string(buffer[:n]), from)), from)
		}
	}
}

func echoLines(c net.Conn) {
	defer c.Close()
	reader := bufio.NewReader(c)
	for {
		line, err := reader.ReadString('\n')
		if err != nil {
			return
		}
		if _, err = c.Write([]byte(answer(strings.TrimSuffix(line, "\n"), c.RemoteAddr()) + "\n")); err != nil {
			return
		}
	}
}

func answer(text string, from net.Addr) string {
	switch text {
	case "who":
		name, _ := os.Hostname()
		return name
	case "from":
		host, _, _ := net.SplitHostPort(from.String())
		return host
	}
	return text
}
