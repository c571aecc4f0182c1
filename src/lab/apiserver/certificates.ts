// SPDX-License-Identifier: Apache-2.0
import 'reflect-metadata';
import { webcrypto } from 'node:crypto';
import { isIP } from 'node:net';
import * as x509 from '@peculiar/x509';

export interface ServerCertificate {
  /** The CA that clients must trust, PEM. */
  caPem: string;
  /** The server's certificate, PEM. */
  certPem: string;
  /** The server's private key, PKCS #8 PEM. */
  keyPem: string;
  /** Issue a client certificate, with its key, for a user in these groups. */
  readonly issueClient: (user: string, groups?: readonly string[]) => Promise<ClientCertificate>;
}

export interface ClientCertificate {
  certPem: string;
  keyPem: string;
}

const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' };
const day = 24 * 60 * 60 * 1000;

/**
 * Make a CA and a server certificate that it signed, both valid from yesterday (clocks differ) for ten years.
 * @param sans the DNS names and IP addresses (text, either family) under which clients reach the server.
 */
export async function issueCertificates(sans: readonly string[]): Promise<ServerCertificate> {
  const { subtle } = webcrypto;
  const caKeys = await subtle.generateKey(algorithm, true, ['sign', 'verify']);
  const validity = {
    notBefore: new Date(Date.now() - day),
    notAfter: new Date(Date.now() + 3650 * day),
    signingAlgorithm: algorithm,
  };
  const ca = await x509.X509CertificateGenerator.createSelfSigned(
    {
      ...validity,
      name: 'CN=ripstop-lab-ca',
      keys: caKeys,
      extensions: [
        new x509.BasicConstraintsExtension(true, 0, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
        await x509.SubjectKeyIdentifierExtension.create(caKeys.publicKey, false, webcrypto),
      ],
    },
    webcrypto,
  );
  const issue = async (
    commonName: string,
    purpose: x509.ExtendedKeyUsage,
    extensions: x509.Extension[],
    organizations: readonly string[] = [],
  ): Promise<ClientCertificate> => {
    const keys = await subtle.generateKey(algorithm, true, ['sign', 'verify']);
    const certificate = await x509.X509CertificateGenerator.create(
      {
        ...validity,
        subject: [...organizations.map((organization) => ({ O: [organization] })), { CN: [commonName] }],
        issuer: ca.subject,
        publicKey: keys.publicKey,
        signingKey: caKeys.privateKey,
        extensions: [
          new x509.BasicConstraintsExtension(false, undefined, true),
          new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
          new x509.ExtendedKeyUsageExtension([purpose]),
          ...extensions,
          await x509.AuthorityKeyIdentifierExtension.create(caKeys.publicKey, false, webcrypto),
        ],
      },
      webcrypto,
    );
    const key = await subtle.exportKey('pkcs8', keys.privateKey);
    return { certPem: certificate.toString('pem'), keyPem: x509.PemConverter.encode(key, 'PRIVATE KEY') };
  };
  const names = [...new Set(sans)].map((value) => ({ type: isIP(value) ? 'ip' : 'dns', value }) as const);
  return {
    caPem: ca.toString('pem'),
    ...(await issue('kube-apiserver', x509.ExtendedKeyUsage.serverAuth, [
      new x509.SubjectAlternativeNameExtension(names),
    ])),
    issueClient: (user, groups) => issue(user, x509.ExtendedKeyUsage.clientAuth, [], groups),
  };
}
