// SPDX-License-Identifier: Apache-2.0

/**
 * A kubeconfig for one user of one server, as YAML text.
 * @param caPem the CA that signed the server's certificate.
 * @param token the user's bearer token.
 */
export function kubeconfigText(server: string, caPem: string, token: string): string {
  return `apiVersion: v1
kind: Config
clusters:
  - name: lab
    cluster:
      server: ${JSON.stringify(server)}
      certificate-authority-data: ${Buffer.from(caPem).toString('base64')}
users:
  - name: lab
    user:
      token: ${JSON.stringify(token)}
contexts:
  - name: lab
    context:
      cluster: lab
      user: lab
current-context: lab
`;
}
