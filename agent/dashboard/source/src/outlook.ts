// What is known beforehand: whether a container could be moved, where to, and how long it would stand still.

import { milliseconds } from "./dom";
import type { Outlook, PeerOutlook } from "./messages";

/** One line for a card; empty where nothing is known, or nothing stands against it. */
export function shortly(outlook: Outlook | null): string {
  if (!outlook) return "";
  if (outlook.reasons.length > 0) return `can't move: ${outlook.reasons.join(", ")}`;
  const peers = Object.entries(outlook.peers);
  const open = peers.filter(([, peer]) => peer.verdict !== "no");
  if (peers.length === 0) return "";
  if (open.length === 0) return `can't move: ${[...new Set(peers.flatMap(([, peer]) => peer.reasons))].join(", ")}`;
  const least = Math.min(...open.flatMap(([, peer]) => Object.values(peer.blackout_ms)));
  const expected = Number.isFinite(least) ? `, blackout from about ${milliseconds(least)}` : "";
  return `could move to ${open.length === 1 ? open[0]?.[0] : `${open.length} hosts`}${expected}`;
}

/** Whether it is known that it can't go anywhere. */
export function stuck(outlook: Outlook | null): boolean {
  return shortly(outlook).startsWith("can't");
}

/** A sentence on one host; empty where nothing is known of it. */
export function sentence(outlook: Outlook | null, host: string): string {
  const peer: PeerOutlook | undefined = outlook?.peers[host];
  const against = [...(outlook?.reasons ?? []), ...(peer?.reasons ?? [])];
  if (outlook && (outlook.reasons.length > 0 || peer?.verdict === "no")) return `It would be refused: ${against.join(", ")}.`;
  if (!peer) return "";
  const spans = Object.entries(peer.blackout_ms).map(([strategy, ms]) => `${strategy} ${milliseconds(ms)}`);
  const only = against.length > 0 ? ` Against post-copy: ${against.join(", ")}.` : "";
  return spans.length > 0 ? `Expected blackout: ${spans.join(", ")}.${only}` : only.trim();
}
