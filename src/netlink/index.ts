// SPDX-License-Identifier: Apache-2.0
export { addAddress, deleteAddress, listAddresses } from './address.ts';
export type { Address, NewAddress, Scope } from './address.ts';
export { inNetns } from './calls.ts';
export { isClockSynchronized } from './clock.ts';
export { findConnection, isOpenTcp, listConnections, makeLiberal } from './conntrack.ts';
export type { Connection, Tuple } from './conntrack.ts';
export { DatagramSocket } from './datagram.ts';
export { echo } from './echo.ts';
export type { Echo, EchoResult } from './echo.ts';
export { NetlinkError } from './error.ts';
export { addLink, deleteLink, getLink, listLinks, probeNetkit, setLink } from './link.ts';
export type {
  AddrGenMode,
  BridgeInfo,
  Link,
  LinkChange,
  LinkSettings,
  NewLink,
  OperState,
  VxlanInfo,
} from './link.ts';
export {
  deleteFdbEntry,
  deleteNeighbour,
  deleteProxy,
  listFdb,
  listNeighbours,
  replaceFdbEntry,
  replaceNeighbour,
  replaceProxy,
} from './neighbour.ts';
export type {
  FdbEntry,
  Neighbour,
  NeighbourState,
  NewFdbEntry,
  NewNeighbour,
  NewProxy,
} from './neighbour.ts';
export { deleteNexthop, listNexthops, replaceNexthop } from './nexthop.ts';
export type { NewNexthop, Nexthop } from './nexthop.ts';
export { listSetAddresses } from './nftables.ts';
export type { NftChange, NftCommit, NftFamily } from './nftables.ts';
export { addClsact, deleteFilter, deleteQdisc, listFilters, listQdiscs, TC_H } from './qdisc.ts';
export type { Filter, Qdisc } from './qdisc.ts';
export { removeLink } from './remove-link.ts';
export {
  addRoute,
  deleteRoute,
  listRoutes,
  lookUpIncoming,
  lookUpRoutes,
  replaceRoute,
  RT_TABLE,
  RTPROT,
} from './route.ts';
export type { Hop, IncomingPacket, NewRoute, Route, RouteFilter, RouteType } from './route.ts';
export { addRule, deleteRule, listRules } from './rule.ts';
export type { NewRule, Rule } from './rule.ts';
export { NetlinkSocket } from './socket.ts';
export type { Message, Protocol, Request } from './socket.ts';
export { filterDestroyed, subscribe } from './subscribe.ts';
export type { Group, NetconfChange, NetlinkEvent, SubscribeOptions, Subscription } from './subscribe.ts';
export { addPolicy, deletePolicy, listPolicies } from './xfrm.ts';
export type { MaskedPort, NewPolicy, Policy } from './xfrm.ts';
