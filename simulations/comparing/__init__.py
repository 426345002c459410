"""``fedretrain compare``: what each way to retrain costs, gains and forgets, on a drift that is built in."""
